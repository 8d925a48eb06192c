/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * Which system calls hold the processor, and which take long?
 *
 * A stamp when a call begins (task storage), a subtraction when it ends. A task that was never
 * switched out meanwhile had the processor for all of that time; of others the scheduler says what
 * they had of it, as exactly as it counts (to a tick).
 */
#include "tegu.bpf.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
/* The first argument, by architecture; one object serves both. */
struct pt_regs___x86 {
	unsigned long di;
};
struct pt_regs___arm64 {
	u64 orig_x0;
};
struct qstr {
	const unsigned char *name;
};
struct dentry {
	struct qstr d_name;
};
struct path {
	struct dentry *dentry;
};
struct super_block {
	u32 s_dev;
};
struct inode {
	unsigned long i_ino;
	struct super_block *i_sb;
};
struct file {
	struct path f_path;
	struct inode *f_inode;
};
struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};
struct files_struct {
	struct fdtable *fdt;
};
#pragma clang attribute pop

/* config.extra: up to six numbers of ten bits, plus one: only these calls; 0: all. */
#define CHOICES 6

struct call {
	u64 since;
	u64 had_ns;		/* of a processor until then */
	u64 switches;
	u32 number;
	s32 fd;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct call);
} calls SEC(".maps");

struct key {
	u64 cgroup;
	char comm[TASK_COMM_LEN];
	u32 tgid;
	u32 number;
};

struct call_sums {
	struct sums all;
	u64 busy_ns;
	u64 busy_max_ns;
	u64 errors;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, struct key);
	__type(value, struct call_sums);
} sums SEC(".maps");

COUNTERS(histogram, SLOTS);

struct event {
	u64 at;
	u64 took_ns;
	u64 busy_ns;
	s64 result;
	u64 inode;
	u32 device;		/* as the kernel has it: 12 bits major, 20 minor */
	u32 number;
	s32 fd;
	u32 unused;
	struct who who;
	char file[64];
};

static __always_inline bool chosen(u32 number)
{
	u64 left = config.extra;
	int i;

	if (!left)
		return true;
	for (i = 0; i < CHOICES; i++) {
		if ((left & 1023) == number + 1)
			return true;
		left >>= 10;
	}
	return false;
}

static __always_inline s32 first_argument(void *regs)
{
	if (bpf_core_field_exists(((struct pt_regs___x86 *)0)->di))
		return BPF_CORE_READ((struct pt_regs___x86 *)regs, di);
	if (bpf_core_field_exists(((struct pt_regs___arm64 *)0)->orig_x0))
		return BPF_CORE_READ((struct pt_regs___arm64 *)regs, orig_x0);
	return -1;
}

static __always_inline u64 switches(struct task_struct *task)
{
	return task->nvcsw + task->nivcsw;
}

SEC("tp_btf/sys_enter")
int BPF_PROG(syscalls_enter, void *regs, long number)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct call *call;

	if (task->tgid == config.self || !chosen(number) || !wanted(task))
		return 0;
	call = bpf_task_storage_get(&calls, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!call) {
		count_lost();
		return 0;
	}
	call->number = number;
	call->fd = first_argument(regs);
	call->switches = switches(task);
	call->had_ns = task->se.sum_exec_runtime;
	call->since = bpf_ktime_get_ns();
	return 0;
}

static __always_inline void tell_file(struct event *event, struct task_struct *task, s32 fd)
{
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **slot, *file = 0;

	if (!table || fd < 0 || fd >= BPF_CORE_READ(table, max_fds))
		return;
	slot = BPF_CORE_READ(table, fd);
	bpf_probe_read_kernel(&file, sizeof(file), slot + fd);
	if (!file)
		return;
	event->inode = BPF_CORE_READ(file, f_inode, i_ino);
	event->device = BPF_CORE_READ(file, f_inode, i_sb, s_dev);
	bpf_probe_read_kernel_str(event->file, sizeof(event->file),
				  BPF_CORE_READ(file, f_path.dentry, d_name.name));
}

SEC("tp_btf/sys_exit")
int BPF_PROG(syscalls_exit, void *regs, long result)
{
	struct task_struct *task = bpf_get_current_task_btf();
	u64 now = bpf_ktime_get_ns(), took, busy;
	struct call_sums none = {}, *sum;
	struct key key = {};
	struct event *event;
	struct call *call;

	call = bpf_task_storage_get(&calls, task, 0, 0);
	if (!call || !call->since)
		return 0;
	took = now - call->since;
	busy = took;
	if (switches(task) != call->switches) {
		busy = task->se.sum_exec_runtime - call->had_ns;
		if (busy > took)
			busy = took;
	}
	call->since = 0;
	count_slot(&histogram, log2_slot(took / 1000));
	key.cgroup = cgroup_id_of(task);
	key.tgid = task->tgid;
	key.number = call->number;
	bpf_probe_read_kernel(key.comm, sizeof(key.comm), task->comm);
	sum = find_or_make(&sums, &key, &none);
	if (sum) {
		add(&sum->all, took);
		__sync_fetch_and_add(&sum->busy_ns, busy);
		if (busy > sum->busy_max_ns)
			sum->busy_max_ns = busy;
		/* MAX_ERRNO, include/linux/err.h */
		if (result < 0 && result >= -4095)
			__sync_fetch_and_add(&sum->errors, 1);
	} else {
		count_lost();
	}
	/* All calls: what holds the processor; chosen ones: what takes long. */
	if ((config.extra ? took : busy) < config.threshold_ns)
		return 0;
	event = new_event(sizeof(*event));
	if (!event)
		return 0;
	__builtin_memset(event, 0, sizeof(*event));
	event->at = now;
	event->took_ns = took;
	event->busy_ns = busy;
	event->result = result;
	event->number = call->number;
	event->fd = call->fd;
	tell_who(&event->who, task);
	if (config.extra)
		tell_file(event, task, call->fd);
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
