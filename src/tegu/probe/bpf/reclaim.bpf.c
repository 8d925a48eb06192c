/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * Who stops to free memory before it gets any, and whose limit or whose growth is to blame?
 *
 * Direct reclaim, reclaim at a control group's limit, and compaction, each between its two
 * tracepoints. For a limit the group that is at it is found by going up from the task's own.
 */
#include "tegu.bpf.h"

enum { DIRECT, LIMIT, COMPACTION, KINDS };

struct stall {
	u64 since[KINDS];
	u64 order[KINDS];
	u64 culprit;		/* who is at its limit when it begins: at the end, nobody may be */
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct stall);
} stalls SEC(".maps");

struct event {
	u64 at;
	u64 stalled_ns;
	u64 culprit;		/* the control group at its limit; 0: none */
	u64 reclaimed;		/* pages */
	u32 kind;
	u32 order;
	u32 depth;
	u32 user_depth;
	struct who who;
	u64 stack[STACK_DEPTH];
	u64 user_stack[STACK_DEPTH];
};

struct sum_key {
	u64 victim;
	u64 culprit;
	u64 kind;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, struct sum_key);
	__type(value, struct sums);
} pairs SEC(".maps");

COUNTERS(histogram, SLOTS);

static __always_inline int begin(int kind, int order)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct stall *stall;

	if (task->flags & PF_KTHREAD || !wanted(task))
		return 0;
	stall = bpf_task_storage_get(&stalls, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!stall) {
		count_lost();
		return 0;
	}
	stall->since[kind] = bpf_ktime_get_ns();
	stall->order[kind] = order;
	if (kind == LIMIT)
		stall->culprit = at_limit(task);
	return 0;
}

static __always_inline int end(void *ctx, int kind, u64 reclaimed)
{
	struct task_struct *task = bpf_get_current_task_btf();
	u64 now = bpf_ktime_get_ns(), ns;
	struct sum_key key = {};
	struct event *event;
	struct stall *stall;

	stall = bpf_task_storage_get(&stalls, task, 0, 0);
	if (!stall || !stall->since[kind])
		return 0;
	ns = now - stall->since[kind];
	stall->since[kind] = 0;
	key.victim = cgroup_id_of(task);
	key.culprit = kind == LIMIT ? stall->culprit : 0;
	key.kind = kind;
	count_slot(&histogram, log2_slot(ns / 1000));
	add_to(&pairs, &key, ns);
	if (ns < config.threshold_ns)
		return 0;
	event = new_event(sizeof(*event));
	if (!event)
		return 0;
	event->at = now;
	event->stalled_ns = ns;
	event->culprit = key.culprit;
	event->reclaimed = reclaimed;
	event->kind = kind;
	event->order = stall->order[kind];
	tell_who(&event->who, task);
	event->depth = frames(bpf_get_stack(ctx, event->stack, sizeof(event->stack), 0));
	event->user_depth = frames(bpf_get_stack(ctx, event->user_stack,
						 sizeof(event->user_stack), BPF_F_USER_STACK));
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 0;
}

SEC("tp_btf/mm_vmscan_direct_reclaim_begin")
int BPF_PROG(reclaim_direct_begin, int order)
{
	return begin(DIRECT, order);
}

SEC("tp_btf/mm_vmscan_direct_reclaim_end")
int BPF_PROG(reclaim_direct_end, unsigned long reclaimed)
{
	return end(ctx, DIRECT, reclaimed);
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_begin")
int BPF_PROG(reclaim_limit_begin, int order)
{
	return begin(LIMIT, order);
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_end")
int BPF_PROG(reclaim_limit_end, unsigned long reclaimed)
{
	return end(ctx, LIMIT, reclaimed);
}

SEC("tp_btf/mm_compaction_begin")
int BPF_PROG(reclaim_compaction_begin)
{
	return begin(COMPACTION, 0);
}

SEC("tp_btf/mm_compaction_end")
int BPF_PROG(reclaim_compaction_end)
{
	return end(ctx, COMPACTION, 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
