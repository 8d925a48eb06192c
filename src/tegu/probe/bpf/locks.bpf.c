/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * Which locks of the kernel are waited for, where, and for how long?
 *
 * The slow paths of the kernel's locks say when they begin to wait and when they stop (Linux 5.19);
 * a lock that is free costs nothing here. A waiter of one kind may be interrupted by one of another.
 */
#include "tegu.bpf.h"

struct wait {
	u64 lock;
	u64 since;
	u32 flags;
	u32 tid;
};

/* Locks that sleep, by task; a task waits for one of them at a time. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct wait);
} asleep SEC(".maps");

/* Locks that spin, by processor. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct wait);
} spinning SEC(".maps");

struct stack_key {
	u64 flags;
	u64 cgroup;
	char comm[TASK_COMM_LEN];
	u64 stack[STACK_DEPTH];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
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
	u64 waited_ns;
	u64 lock;
	u32 flags;
	u32 depth;
	struct who who;
	u64 stack[STACK_DEPTH];
};

/* include/trace/events/lock.h: LCB_F_SPIN */
#define SPINS 1

static __always_inline struct wait *place(struct task_struct *task, bool spins, bool make)
{
	u32 zero = 0;

	if (spins)
		return bpf_map_lookup_elem(&spinning, &zero);
	return bpf_task_storage_get(&asleep, task, 0, make ? BPF_LOCAL_STORAGE_GET_F_CREATE : 0);
}

SEC("tp_btf/contention_begin")
int BPF_PROG(locks_begin, void *lock, unsigned int flags)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct wait *wait;

	if (!wanted(task))
		return 0;
	wait = place(task, flags & SPINS, true);
	/* A mutex that spins first begins twice: the first time counts. */
	if (!wait || wait->lock == (u64)lock)
		return 0;
	wait->lock = (u64)lock;
	wait->flags = flags;
	wait->since = bpf_ktime_get_ns();
	return 0;
}

SEC("tp_btf/contention_end")
int BPF_PROG(locks_end, void *lock)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct wait *wait = place(task, true, false);
	u64 now = bpf_ktime_get_ns(), waited;
	struct stack_key *key;
	struct event *event;
	u32 zero = 0;
	long got;

	if (!wait || wait->lock != (u64)lock)
		wait = place(task, false, false);
	if (!wait || wait->lock != (u64)lock)
		return 0;
	waited = now - wait->since;
	wait->lock = 0;
	count_slot(&histogram, log2_slot(waited / 1000));
	if (waited < config.floor_ns)
		return 0;
	key = bpf_map_lookup_elem(&scratch, &zero);
	if (!key)
		return 0;
	__builtin_memset(key->stack, 0, sizeof(key->stack));
	got = bpf_get_stack(ctx, key->stack, sizeof(key->stack), 0);
	key->flags = wait->flags;
	key->cgroup = cgroup_id_of(task);
	bpf_probe_read_kernel(key->comm, sizeof(key->comm), task->comm);
	add_to(&stacks, key, waited);
	if (waited < config.threshold_ns)
		return 0;
	event = new_event(sizeof(*event));
	if (!event)
		return 0;
	event->at = now;
	event->waited_ns = waited;
	event->lock = (u64)lock;
	event->flags = wait->flags;
	event->depth = frames(got);
	tell_who(&event->who, task);
	__builtin_memcpy(event->stack, key->stack, sizeof(event->stack));
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
