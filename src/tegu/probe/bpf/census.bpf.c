/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * Which tasks are there, in which state, in which control group? One pass over the task list, in
 * the kernel (iter/task): no directory of /proc is opened.
 */
#include "tegu.bpf.h"

struct row {
	struct who who;
	u32 parent;
	u32 state;
	u32 flags;
	u32 exit_state;
	u64 user_ns;
	u64 system_ns;
	u64 start_ns;
};

SEC("iter/task")
int census_task(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct row row = {};

	if (!task || !wanted(task))
		return 0;
	tell_who(&row.who, task);
	row.parent = BPF_CORE_READ(task, real_parent, tgid);
	row.state = task->__state;
	row.flags = task->flags;
	row.exit_state = task->exit_state;
	row.user_ns = task->utime;
	row.system_ns = task->stime;
	row.start_ns = task->start_time;
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
