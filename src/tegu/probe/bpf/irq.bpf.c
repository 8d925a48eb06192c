/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * What do interrupts cost, and whom do they keep waiting?
 *
 * A processor runs one handler of each kind at a time. What a soft interrupt was itself kept
 * waiting by hard ones is theirs.
 */
#include "tegu.bpf.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct irqaction {
	const char *name;
};
#pragma clang attribute pop

enum { HARD, SOFT, KINDS };

struct running {
	u64 since[KINDS];
	u64 inner;		/* of hard ones, since the soft one began */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct running);
} now_running SEC(".maps");

struct key {
	u32 kind;
	u32 number;
	u32 cpu;
	u32 unused;
	char name[32];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, struct key);
	__type(value, struct sums);
} sums SEC(".maps");

struct victim {
	u64 cgroup;
	char comm[TASK_COMM_LEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, struct victim);
	__type(value, struct sums);
} victims SEC(".maps");

struct event {
	u64 at;
	u64 took_ns;
	u32 kind;
	u32 number;
	u32 cpu;
	u32 unused;
	struct who who;		/* whom it interrupted */
	char name[32];
};

static __always_inline struct running *begin(u32 kind)
{
	u32 zero = 0;
	struct running *running = bpf_map_lookup_elem(&now_running, &zero);

	if (running && kind < KINDS)
		running->since[kind] = bpf_ktime_get_ns();
	return running;
}

static __always_inline void end(u32 kind, u32 number, const char *name)
{
	struct task_struct *task = bpf_get_current_task_btf();
	u32 zero = 0;
	struct running *running = bpf_map_lookup_elem(&now_running, &zero);
	struct victim victim = {};
	struct event *event;
	struct key key = {};
	u64 now, took;

	if (!running || !running->since[kind])
		return;
	now = bpf_ktime_get_ns();
	took = now - running->since[kind];
	running->since[kind] = 0;
	if (kind == HARD)
		running->inner += took;
	else
		took -= took > running->inner ? running->inner : took;
	key.kind = kind;
	key.number = number;
	key.cpu = bpf_get_smp_processor_id();
	if (name)
		bpf_probe_read_kernel_str(key.name, sizeof(key.name), name);
	add_to(&sums, &key, took);
	/* The idle task loses nothing. */
	if (task->pid) {
		victim.cgroup = cgroup_id_of(task);
		bpf_probe_read_kernel(victim.comm, sizeof(victim.comm), task->comm);
		add_to(&victims, &victim, took);
	}
	if (took < config.threshold_ns)
		return;
	event = new_event(sizeof(*event));
	if (!event)
		return;
	event->at = now;
	event->took_ns = took;
	event->kind = kind;
	event->number = number;
	event->cpu = key.cpu;
	event->unused = 0;
	tell_who(&event->who, task);
	__builtin_memcpy(event->name, key.name, sizeof(event->name));
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

SEC("tp_btf/irq_handler_entry")
int BPF_PROG(irq_hard_begin, int number)
{
	begin(HARD);
	return 0;
}

SEC("tp_btf/irq_handler_exit")
int BPF_PROG(irq_hard_end, int number, struct irqaction *action)
{
	end(HARD, number, action->name);
	return 0;
}

SEC("tp_btf/softirq_entry")
int BPF_PROG(irq_soft_begin, unsigned int number)
{
	struct running *running = begin(SOFT);

	if (running)
		running->inner = 0;
	return 0;
}

SEC("tp_btf/softirq_exit")
int BPF_PROG(irq_soft_end, unsigned int number)
{
	end(SOFT, number, 0);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
