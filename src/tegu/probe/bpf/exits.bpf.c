/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * What starts, what ends and how, and whom does the kernel kill for lack of memory?
 */
#include "tegu.bpf.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct linux_binprm {
	const char *filename;
};
#pragma clang attribute pop

enum { EXEC, EXIT, OOM };

struct event {
	u64 at;
	u64 lived_ns;		/* exit */
	u64 limit;		/* OOM: the control group at its limit; 0: the machine */
	u32 kind;
	s32 code;		/* exit: as wait(2) has it */
	u32 parent;
	u32 unused;
	struct who who;		/* OOM: the killed one */
	struct who by;		/* exec, exit: the parent; OOM: who asked for memory */
	char file[128];
};

/* config.extra: 1: exec too, 2: exits that are no failures too. */

static __always_inline struct event *reserve(u32 kind)
{
	struct event *event = new_event(sizeof(*event));

	if (!event)
		return 0;
	__builtin_memset(event, 0, sizeof(*event));
	event->at = bpf_ktime_get_ns();
	event->kind = kind;
	return event;
}

static __always_inline void tell_parent(struct event *event, struct task_struct *task)
{
	struct task_struct *parent = task->real_parent;

	if (parent) {
		event->parent = parent->tgid;
		tell_who(&event->by, parent);
	}
}

struct count_key {
	u64 cgroup;
	char comm[TASK_COMM_LEN];
	s32 code;
	u32 kind;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, struct count_key);
	__type(value, struct sums);
} counts SEC(".maps");

static __always_inline void count(u32 kind, struct task_struct *task, s32 code, u64 ns)
{
	struct count_key key = {};

	key.cgroup = cgroup_id_of(task);
	key.kind = kind;
	key.code = code;
	bpf_probe_read_kernel(key.comm, sizeof(key.comm), task->comm);
	add_to(&counts, &key, ns);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(exits_exec, struct task_struct *task, int old, struct linux_binprm *program)
{
	struct event *event;

	if (!wanted(task))
		return 0;
	count(EXEC, task, 0, 0);
	if (!(config.extra & 1))
		return 0;
	event = reserve(EXEC);
	if (!event)
		return 0;
	tell_who(&event->who, task);
	tell_parent(event, task);
	bpf_probe_read_kernel_str(event->file, sizeof(event->file), program->filename);
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(exits_exit, struct task_struct *task)
{
	u64 lived = bpf_ktime_get_ns() - task->start_time;
	struct event *event;

	if (task->pid != task->tgid || !wanted(task))
		return 0;
	count(EXIT, task, task->exit_code, lived);
	/* A failure: a signal, or a code that is not 0. */
	if (!task->exit_code && !(config.extra & 2))
		return 0;
	event = reserve(EXIT);
	if (!event)
		return 0;
	event->lived_ns = lived;
	event->code = task->exit_code;
	tell_who(&event->who, task);
	tell_parent(event, task);
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 0;
}

static __always_inline struct event *killed(void)
{
	struct event *event = reserve(OOM);

	if (event)
		tell_who(&event->by, bpf_get_current_task_btf());
	return event;
}

/* Linux 6.9 and later tell the task. */
SEC("tp_btf/mark_victim")
int BPF_PROG(exits_oom, struct task_struct *task)
{
	struct event *event;

	if (!wanted(task))
		return 0;
	event = killed();
	if (!event)
		return 0;
	tell_who(&event->who, task);
	event->limit = at_limit(task);
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 0;
}

/* Those before tell its number. */
SEC("tp_btf/mark_victim")
int BPF_PROG(exits_oom_number, int pid)
{
	struct event *event = killed();

	if (!event)
		return 0;
	event->who.tid = pid;
	event->who.tgid = pid;
	event->who.cgroup = event->by.cgroup;
	event->limit = at_limit(bpf_get_current_task_btf());
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
