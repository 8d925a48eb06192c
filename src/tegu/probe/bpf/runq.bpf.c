/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * How long do tasks wait for a processor, and behind whom?
 *
 * One program on sched_switch. The kernel itself notes when a task was queued
 * (task_struct.sched_info.last_queued, kernel/sched/stats.h) by the clock of its run queue, and the
 * tracepoint comes before it clears that: so the wait is a subtraction, and neither wakeups nor
 * a map by task are needed.
 *
 * Who stands before a waiting task in the end is often not who made it wait. So each processor
 * remembers its last long runs, and the longest of them within the wait is the culprit.
 */
#include "tegu.bpf.h"

struct event {
	u64 at;
	u64 wait_ns;
	u64 ran_ns;		/* how long the culprit had the processor within the wait */
	u32 cpu;
	u32 depth;		/* frames in the kernel of the culprit, if it was the last before */
	u32 user_depth;
	u32 preempted;		/* whether the culprit had to be forced off */
	struct who victim;
	struct who culprit;
	u64 stack[STACK_DEPTH];
	u64 user_stack[STACK_DEPTH];
};

struct pair {
	u64 victim;
	u64 culprit;
};

#define RUNS 8

struct run {
	u64 from;
	u64 to;
	struct who who;
	u64 preempted;
};

struct cpu_state {
	u64 since;		/* when the task that runs got the processor */
	u64 switches;
	u64 next_run;
	struct run runs[RUNS];	/* the last ones of config.floor_ns and more */
	u64 histogram[SLOTS];	/* microseconds */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct cpu_state);
} cpus SEC(".maps");

/* Waits by control group: who waited, and behind whom. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 10240);
	__type(key, struct pair);
	__type(value, struct sums);
} pairs SEC(".maps");

struct task_key {
	u32 tgid;
	char comm[TASK_COMM_LEN];
	u32 unused;
	u64 cgroup;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, struct task_key);
	__type(value, struct sums);
} tasks SEC(".maps");

static __always_inline void attribute(struct task_struct *next, u64 culprit, u64 ns)
{
	struct pair pair = { cgroup_id_of(next), culprit };
	struct task_key key = {};

	add_to(&pairs, &pair, ns);
	key.tgid = next->tgid;
	key.cgroup = pair.victim;
	bpf_probe_read_kernel(key.comm, sizeof(key.comm), next->comm);
	add_to(&tasks, &key, ns);
}

/* The waits worth a closer look; apart, so that the short way stays short. */
static __always_inline int long_wait(void *ctx, struct cpu_state *cpu, struct task_struct *prev,
				struct task_struct *next, u64 queued, u64 now)
{
	u64 wait = now - queued, longest = 0, last = cpu->next_run - 1;
	struct event *event;
	u32 best = 0, i;
	long n;

	/* The run that just ended is among them if it was long. */
#pragma unroll
	for (i = 0; i < RUNS; i++) {
		struct run *run = &cpu->runs[i];
		u64 from = run->from > queued ? run->from : queued;

		if (run->to > from && run->to - from > longest) {
			longest = run->to - from;
			best = i;
		}
	}
	best &= RUNS - 1;
	attribute(next, longest ? cpu->runs[best].who.cgroup : cgroup_id_of(prev), wait);
	if (wait < config.threshold_ns)
		return 0;
	event = new_event(sizeof(*event));
	if (!event)
		return 0;
	event->at = bpf_ktime_get_ns();
	event->wait_ns = wait;
	event->ran_ns = longest;
	event->cpu = bpf_get_smp_processor_id();
	event->preempted = 0;
	event->depth = 0;
	event->user_depth = 0;
	tell_who(&event->victim, next);
	if (longest) {
		event->culprit = cpu->runs[best].who;
		event->preempted = cpu->runs[best].preempted;
	} else {
		tell_who(&event->culprit, prev);
	}
	if (!longest || (best == (last & (RUNS - 1)) && cpu->runs[best].to == now)) {
		n = bpf_get_stack(ctx, event->stack, sizeof(event->stack), 0);
		event->depth = frames(n);
		n = prev->mm ? bpf_get_stack(ctx, event->user_stack, sizeof(event->user_stack),
					     BPF_F_USER_STACK) : 0;
		event->user_depth = frames(n);
	}
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(runq_switch, bool preempt, struct task_struct *prev, struct task_struct *next,
	     unsigned int prev_state)
{
	/* The processor's own run queue, which no exported symbol leads to on every kernel. */
	u64 now = next->se.cfs_rq->rq->clock, queued = next->sched_info.last_queued, since;
	struct cpu_state *cpu;
	u32 zero = 0;

	cpu = bpf_map_lookup_elem(&cpus, &zero);
	if (!cpu)
		return 0;
	since = cpu->since;
	cpu->since = now;
	cpu->switches++;
	if (since && prev->pid && now - since >= config.floor_ns) {
		struct run *run = &cpu->runs[cpu->next_run++ & (RUNS - 1)];

		run->from = since;
		run->to = now;
		run->preempted = prev_state == 0;
		tell_who(&run->who, prev);
	}
	if (!queued || !next->pid || now < queued)
		return 0;
	if ((config.cgroup || config.tgid) && !wanted(next))
		return 0;
	/* The usual case on a machine that switches a lot: no division. */
	if (now - queued < 2000)
		cpu->histogram[0]++;
	else
		cpu->histogram[log2_slot((now - queued) / 1000) & (SLOTS - 1)]++;
	if (now - queued < config.floor_ns)
		return 0;
	return long_wait(ctx, cpu, prev, next, queued, now);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
