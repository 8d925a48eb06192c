/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * Who has the processors, and what does it do there? Samples by a timer of each processor; stacks
 * are kept and counted in the kernel.
 */
#include "tegu.bpf.h"

#define DEPTH 127

struct key {
	struct who who;
	s64 kernel_stack;
	s64 user_stack;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct key);
	__type(value, u64);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 16384);
	__uint(key_size, sizeof(u32));
	__uint(value_size, DEPTH * sizeof(u64));
} stacks SEC(".maps");

/* Of each processor: idle samples, all others. */
COUNTERS(samples, 2);

SEC("perf_event")
int profile_sample(void *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct key key = {};
	u32 busy = task->pid != 0;

	count_slot(&samples, busy);
	if (!busy || !wanted(task))
		return 0;
	tell_who(&key.who, task);
	key.who.tid = 0;
	key.kernel_stack = bpf_get_stackid(ctx, &stacks, 0);
	key.user_stack = task->flags & PF_KTHREAD ? -1 :
		bpf_get_stackid(ctx, &stacks, BPF_F_USER_STACK);
	count_in(&counts, &key);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
