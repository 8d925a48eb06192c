/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * What do tasks sleep on, and for how long?
 *
 * A stamp when a task goes to sleep (task storage, no hashing), a subtraction when it comes back.
 * Its stack is taken on its return and only after a long sleep: it still is the one that it went
 * to sleep with. Tasks that have not come back are found by an iterator.
 */
#include "tegu.bpf.h"

/* config.extra: only these states; 0: all. */

struct sleep {
	u64 since;
	u64 state;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sleep);
} sleeps SEC(".maps");

struct stack_key {
	struct who who;		/* its tid is 0: threads of a process are one */
	u64 state;
	u64 stack[STACK_DEPTH];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct stack_key);
	__type(value, struct sums);
} stacks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct stack_key);
} scratch SEC(".maps");

COUNTERS(histogram, SLOTS);

struct event {
	u64 at;
	u64 slept_ns;
	u32 state;
	u32 iowait;
	u32 depth;
	u32 ended;		/* 0: it still sleeps */
	struct who who;
	u64 stack[STACK_DEPTH];
};

static __always_inline bool counts(u64 state)
{
	/* Kernel threads that wait for work sleep so (TASK_IDLE). */
	if (state & TASK_NOLOAD)
		return false;
	return config.extra ? state & config.extra : state & TASK_REPORT_MASK;
}

static __always_inline void back(struct task_struct *task, struct sleep *sleep, u64 now)
{
	u64 slept = now - sleep->since;
	u32 zero = 0;
	struct stack_key *key;
	struct event *event;
	long got;

	count_slot(&histogram, log2_slot(slept / 1000));
	if (slept < config.floor_ns)
		return;
	key = bpf_map_lookup_elem(&scratch, &zero);
	if (!key)
		return;
	__builtin_memset(key->stack, 0, sizeof(key->stack));
	got = bpf_get_task_stack(task, key->stack, sizeof(key->stack), 0);
	tell_who(&key->who, task);
	key->who.tid = 0;
	key->state = sleep->state;
	add_to(&stacks, key, slept);
	if (slept < config.threshold_ns)
		return;
	event = new_event(sizeof(*event));
	if (!event)
		return;
	event->at = now;
	event->slept_ns = slept;
	event->state = sleep->state;
	event->iowait = BPF_CORE_READ_BITFIELD(task, in_iowait);
	event->depth = frames(got);
	event->ended = 1;
	event->who = key->who;
	event->who.tid = task->pid;
	__builtin_memcpy(event->stack, key->stack, sizeof(event->stack));
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

SEC("tp_btf/sched_switch")
int BPF_PROG(offcpu_switch, bool preempt, struct task_struct *prev, struct task_struct *next,
	     unsigned int prev_state)
{
	u64 now = bpf_ktime_get_ns();
	struct sleep *sleep;

	if (!preempt && prev->pid && counts(prev_state) && wanted(prev)) {
		sleep = bpf_task_storage_get(&sleeps, prev, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
		if (sleep) {
			sleep->since = now;
			sleep->state = prev_state;
		} else {
			count_lost();
		}
	}
	if (!next->pid)
		return 0;
	sleep = bpf_task_storage_get(&sleeps, next, 0, 0);
	if (sleep && sleep->since) {
		back(next, sleep, now);
		sleep->since = 0;
	}
	return 0;
}

/* Tasks that sleep now, for as long as the threshold or since before the probe began. */
SEC("iter/task")
int offcpu_still(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct event event = {};
	struct sleep *sleep;

	if (!task || !counts(task->__state) || task->exit_state || !wanted(task))
		return 0;
	/* Kernel threads that wait for work are no news. */
	if (!config.extra && task->flags & PF_KTHREAD)
		return 0;
	event.at = bpf_ktime_get_ns();
	sleep = bpf_task_storage_get(&sleeps, task, 0, 0);
	if (sleep && sleep->since) {
		event.slept_ns = event.at - sleep->since;
		if (event.slept_ns < config.threshold_ns)
			return 0;
	}
	event.state = task->__state;
	event.iowait = BPF_CORE_READ_BITFIELD(task, in_iowait);
	tell_who(&event.who, task);
	event.depth = frames(bpf_get_task_stack(task, event.stack, sizeof(event.stack), 0));
	bpf_seq_write(ctx->meta->seq, &event, sizeof(event));
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
