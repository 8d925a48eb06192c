/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * Who asks for large blocks of memory, and what does that break up?
 *
 * Single pages, by far the most, are looked at no further than their order.
 */
#include "tegu.bpf.h"

/* config.extra: from which order on. */

struct key {
	u64 cgroup;
	char comm[TASK_COMM_LEN];
	u32 order;
	u32 failed;
	u64 stack[STACK_DEPTH];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct key);
	__type(value, u64);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct key);
} scratch SEC(".maps");

/* Blocks of one kind of memory taken for another, by order: what leads to fragmentation. */
COUNTERS(broken, 16);

SEC("tp_btf/mm_page_alloc")
int BPF_PROG(orders_alloc, void *page, unsigned int order)
{
	struct task_struct *task;
	struct key *key;
	u32 zero = 0;

	if (order < config.extra)
		return 0;
	task = bpf_get_current_task_btf();
	if (!wanted(task))
		return 0;
	key = bpf_map_lookup_elem(&scratch, &zero);
	if (!key)
		return 0;
	__builtin_memset(key, 0, sizeof(*key));
	key->cgroup = cgroup_id_of(task);
	key->order = order;
	key->failed = !page;
	bpf_probe_read_kernel(key->comm, sizeof(key->comm), task->comm);
	bpf_get_stack(ctx, key->stack, sizeof(key->stack), 0);
	count_in(&counts, key);
	return 0;
}

SEC("tp_btf/mm_page_alloc_extfrag")
int BPF_PROG(orders_broken, void *page, int order)
{
	if (order >= 0 && order < 16)
		count_slot(&broken, order);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
