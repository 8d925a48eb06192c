/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * What all probes share: the few kernel types that they look at, and what they send.
 *
 * The types name only the members that are read. CO-RE (preserve_access_index) writes a relocation
 * for each access, and libbpf puts in the offset of the running kernel from its BTF
 * (Documentation/bpf/llvm_reloc.rst); so no header of any one kernel is needed.
 */
#ifndef TEGU_BPF_H
#define TEGU_BPF_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
#define true 1
#define false 0

/* include/uapi/linux/bpf.h */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_STACK_TRACE = 7,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_MAP_TYPE_TASK_STORAGE = 29,
};
enum { BPF_ANY, BPF_NOEXIST };
#define BPF_F_NO_PREALLOC 1U
#define BPF_F_USER_STACK (1ULL << 8)
#define BPF_RB_NO_WAKEUP 1ULL
#define BPF_LOCAL_STORAGE_GET_F_CREATE 1ULL

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#define bpf_ntohs(x) __builtin_bswap16(x)

#define TASK_COMM_LEN 16
#define STACK_DEPTH 32
#define SLOTS 32

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kernfs_node {
	u64 id;
};
struct cgroup {
	struct kernfs_node *kn;
	int level;
	struct cgroup *ancestors[0];
};
struct cgroup_subsys_state {
	struct cgroup *cgroup;
};
struct css_set {
	struct cgroup_subsys_state *subsys[16];
	struct cgroup *dfl_cgrp;
};
struct sched_info {
	unsigned long long last_queued;
};
struct rq {
	u64 clock;
};
struct cfs_rq {
	struct rq *rq;
};
struct sched_entity {
	u64 sum_exec_runtime;
	struct cfs_rq *cfs_rq;
};
struct mm_struct;
struct files_struct;
struct task_struct {
	unsigned int __state;
	int pid;
	int tgid;
	unsigned int flags;
	char comm[TASK_COMM_LEN];
	struct task_struct *group_leader;
	struct task_struct *real_parent;
	struct css_set *cgroups;
	struct sched_entity se;
	struct sched_info sched_info;
	struct mm_struct *mm;
	u64 utime;
	u64 stime;
	u64 start_time;
	unsigned long nvcsw;
	unsigned long nivcsw;
	struct files_struct *files;
	int exit_code;
	int exit_state;
	unsigned int in_iowait : 1;
};
struct seq_file;
struct bpf_iter_meta {
	struct seq_file *seq;
};
struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

enum cgroup_subsys_id {
	cpu_cgrp_id,
	memory_cgrp_id,
	io_cgrp_id,
};

#pragma clang attribute pop

/* include/linux/sched.h */
#define PF_EXITING 0x4
#define PF_KTHREAD 0x00200000
#define TASK_INTERRUPTIBLE 1
#define TASK_UNINTERRUPTIBLE 2
#define TASK_NOLOAD 0x400
#define TASK_REPORT_MASK 0x7f

/* Which hierarchy says where a task belongs: version 2, or a controller of version 1. */
enum { HIERARCHY_UNIFIED, HIERARCHY_CPU, HIERARCHY_MEMORY, HIERARCHY_IO };

/* Filled in before the program is loaded (tegu/probe/session.py, CONFIG). */
struct config {
	u64 threshold_ns;	/* what takes as long is sent as an event of its own */
	u64 floor_ns;		/* what takes less is not attributed */
	u64 cgroup;		/* only this control group and those below it; 0: all */
	u32 cgroup_level;	/* how deep it is below the root */
	u32 hierarchy;
	u32 tgid;		/* only this process; 0: all */
	u32 self;		/* the reader, never looked at; 0: none */
	u64 extra;		/* what the tool makes of it */
};
const volatile struct config config SEC(".rodata.config") = {};

struct who {
	u64 cgroup;
	u32 tid;
	u32 tgid;
	char comm[TASK_COMM_LEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 21);
} events SEC(".maps");

/* Events that found no room, or that could not be followed. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} lost SEC(".maps");

/* The value of a key, made when there is none; null when the map is full. */
static __always_inline void *find_or_make(void *map, const void *key, const void *fresh)
{
	void *found = bpf_map_lookup_elem(map, key);

	if (!found) {
		bpf_map_update_elem(map, key, fresh, BPF_NOEXIST);
		found = bpf_map_lookup_elem(map, key);
	}
	return found;
}

static __always_inline void count_lost(void)
{
	u32 zero = 0;
	u64 *n = bpf_map_lookup_elem(&lost, &zero);

	if (n)
		(*n)++;
}

static __always_inline struct cgroup *cgroup_of(struct task_struct *task)
{
	struct css_set *set = task->cgroups;
	struct cgroup_subsys_state *css = 0;
	struct cgroup *cgroup = 0;
	u32 i = 0;

	if (config.hierarchy == HIERARCHY_UNIFIED)
		return set->dfl_cgrp;
	if (config.hierarchy == HIERARCHY_CPU)
		i = bpf_core_enum_value(enum cgroup_subsys_id, cpu_cgrp_id);
	else if (config.hierarchy == HIERARCHY_MEMORY)
		i = bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);
	else
		i = bpf_core_enum_value(enum cgroup_subsys_id, io_cgrp_id);
	bpf_probe_read_kernel(&css, sizeof(css), (void *)set +
			      bpf_core_field_offset(struct css_set, subsys) + i * sizeof(void *));
	if (css)
		cgroup = BPF_CORE_READ(css, cgroup);
	return cgroup;
}

static __always_inline u64 cgroup_id_of(struct task_struct *task)
{
	struct cgroup *cgroup = cgroup_of(task);

	return cgroup ? BPF_CORE_READ(cgroup, kn, id) : 0;
}

/* Whether `task` is one that was asked for. */
static __always_inline bool wanted(struct task_struct *task)
{
	struct cgroup *cgroup, *above = 0;

	if (config.tgid && task->tgid != config.tgid)
		return false;
	if (!config.cgroup)
		return true;
	cgroup = cgroup_of(task);
	if (!cgroup || BPF_CORE_READ(cgroup, level) < config.cgroup_level)
		return false;
	bpf_probe_read_kernel(&above, sizeof(above), (void *)cgroup +
			      bpf_core_field_offset(struct cgroup, ancestors) +
			      config.cgroup_level * sizeof(void *));
	return above && BPF_CORE_READ(above, kn, id) == config.cgroup;
}

static __always_inline void tell_who(struct who *who, struct task_struct *task)
{
	who->cgroup = cgroup_id_of(task);
	who->tid = task->pid;
	who->tgid = task->tgid;
	bpf_probe_read_kernel(who->comm, sizeof(who->comm), task->comm);
}

/* What bpf_get_stack answered, in frames. */
static __always_inline u32 frames(long bytes)
{
	return bytes > 0 ? (u32)bytes >> 3 : 0;
}

struct sums {
	u64 count;
	u64 total_ns;
	u64 max_ns;
};

static __always_inline void add(struct sums *sums, u64 ns)
{
	__sync_fetch_and_add(&sums->count, 1);
	__sync_fetch_and_add(&sums->total_ns, ns);
	if (ns > sums->max_ns)
		sums->max_ns = ns;
}

/* Adds to the sums of a key; what finds no room is counted as lost. */
static __always_inline void add_to(void *map, const void *key, u64 ns)
{
	struct sums none = {}, *sums = find_or_make(map, key, &none);

	if (sums)
		add(sums, ns);
	else
		count_lost();
}

/* The same for a key that is only counted. */
static __always_inline void count_in(void *map, const void *key)
{
	u64 zero = 0, *n = find_or_make(map, key, &zero);

	if (n)
		__sync_fetch_and_add(n, 1);
	else
		count_lost();
}

/* Room for an event, which must be submitted; null, and counted as lost, when there is none. */
static __always_inline void *new_event(u64 size)
{
	void *event = bpf_ringbuf_reserve(&events, size, 0);

	if (!event)
		count_lost();
	return event;
}

/* Counters of each processor by a small number; read by slots_of (tegu/probe/tool.py). */
#define COUNTERS(name, entries) \
	struct { \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); \
		__uint(max_entries, entries); \
		__type(key, u32); \
		__type(value, u64); \
	} name SEC(".maps")

static __always_inline void count_slot(void *counters, u32 slot)
{
	u64 *n = bpf_map_lookup_elem(counters, &slot);

	if (n)
		(*n)++;
}

/* The slot of a histogram by powers of two: 0 is below 2, n is 2^n up to 2^(n+1) - 1. */
static __always_inline u32 log2_slot(u64 v)
{
	u32 slot = 0, high = v >> 32;

	if (high)
		return SLOTS - 1;
	if (v & 0xffff0000) { v >>= 16; slot += 16; }
	if (v & 0xff00) { v >>= 8; slot += 8; }
	if (v & 0xf0) { v >>= 4; slot += 4; }
	if (v & 0xc) { v >>= 2; slot += 2; }
	if (v & 2) slot += 1;
	return slot;
}

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
typedef struct {
	long counter;
} atomic_long_t;
struct page_counter {
	atomic_long_t usage;
	unsigned long high;
	unsigned long max;
};
struct cgroup_subsys_state___memory {
	struct cgroup *cgroup;
	struct cgroup_subsys_state___memory *parent;
};
struct mem_cgroup {
	struct cgroup_subsys_state___memory css;
	struct page_counter memory;
};
#pragma clang attribute pop


/* Pages that a CPU takes from the account at once (MEMCG_CHARGE_BATCH): so near is at the limit. */
#define BATCH 64
#define LEVELS 12

/* The nearest control group, from the task's own upwards, that has used up what it may. */
static __always_inline u64 at_limit(struct task_struct *task)
{
	struct mem_cgroup *memcg = 0;
	int i;

	bpf_probe_read_kernel(&memcg, sizeof(memcg), (void *)task->cgroups +
			      bpf_core_field_offset(struct css_set, subsys) +
			      bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id) *
			      sizeof(void *));
	for (i = 0; i < LEVELS; i++) {
		unsigned long usage, high, max;

		if (!memcg)
			return 0;
		usage = BPF_CORE_READ(memcg, memory.usage.counter);
		high = BPF_CORE_READ(memcg, memory.high);
		max = BPF_CORE_READ(memcg, memory.max);
		if (usage + BATCH >= max || usage > high)
			return BPF_CORE_READ(memcg, css.cgroup, kn, id);
		/* css is the first member (mem_cgroup_from_css). */
		memcg = (void *)BPF_CORE_READ(memcg, css.parent);
	}
	return 0;
}

#endif
