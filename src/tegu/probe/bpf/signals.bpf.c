/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * Who sends which signal to whom?
 */
#include "tegu.bpf.h"

struct key {
	u64 cgroup;
	u64 to_cgroup;
	char comm[TASK_COMM_LEN];
	char to_comm[TASK_COMM_LEN];
	u32 number;
	u32 kernel;		/* the kernel itself sent it */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, struct key);
	__type(value, u64);
} counts SEC(".maps");

struct event {
	u64 at;
	u32 number;
	s32 code;		/* si_code; sent by the kernel: above 0 */
	u32 result;		/* enum of include/trace/events/signal.h */
	u32 kernel;
	struct who who;
	struct who to;
};

/* config.extra: a bit for each signal that is an event; 0: all are. */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct kernel_siginfo {
	int si_code;
};
#pragma clang attribute pop

SEC("tp_btf/signal_generate")
int BPF_PROG(signals_sent, int number, struct kernel_siginfo *info, struct task_struct *target,
	     int group, int result)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct key key = {};
	struct event *event;
	s32 code = 0;
	bool kernel;

	if (!wanted(target) && !wanted(task))
		return 0;
	/* SEND_SIG_NOINFO and SEND_SIG_PRIV are the numbers 0 and 1. */
	if ((u64)info > 1)
		code = BPF_CORE_READ(info, si_code);
	kernel = (u64)info == 1 || code > 0;
	key.number = number;
	key.kernel = kernel;
	key.to_cgroup = cgroup_id_of(target);
	bpf_probe_read_kernel(key.to_comm, sizeof(key.to_comm), target->comm);
	if (!kernel) {
		key.cgroup = cgroup_id_of(task);
		bpf_probe_read_kernel(key.comm, sizeof(key.comm), task->comm);
	}
	count_in(&counts, &key);
	if (config.extra && !(config.extra >> (number & 63) & 1))
		return 0;
	event = new_event(sizeof(*event));
	if (!event)
		return 0;
	event->at = bpf_ktime_get_ns();
	event->number = number;
	event->code = code;
	event->result = result;
	event->kernel = kernel;
	tell_who(&event->who, task);
	tell_who(&event->to, target);
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
