/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * How long do block devices take, for whom, and does the time go in the queue or in the device?
 *
 * struct request carries when it was made; when it went to the device is noted here. For whom: the
 * control group that the request is charged to, which for written-back pages is not that of the
 * kernel thread that writes them.
 */
#include "tegu.bpf.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct gendisk {
	int major;
	int first_minor;
	char disk_name[32];
};
struct request_queue {
	struct gendisk *disk;
};
struct cgroup_subsys_state___blk {
	struct cgroup *cgroup;
};
struct blkcg {
	struct cgroup_subsys_state___blk css;
};
struct blkcg_gq {
	struct blkcg *blkcg;
};
struct bio {
	struct blkcg_gq *bi_blkg;
};
struct request {
	struct request_queue *q;
	unsigned int cmd_flags;
	unsigned int __data_len;
	unsigned long long __sector;
	struct bio *bio;
	u64 start_time_ns;
};
#pragma clang attribute pop

struct seen {
	u64 made;
	u64 issued;
	struct who who;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, u64);
	__type(value, struct seen);
} requests SEC(".maps");

struct key {
	u64 cgroup;
	char disk[32];
	u32 op;
	u32 tgid;
	char comm[TASK_COMM_LEN];
};

struct io_sums {
	u64 count;
	u64 bytes;
	u64 queue_ns;
	u64 device_ns;
	u64 max_ns;
	u64 errors;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, struct key);
	__type(value, struct io_sums);
} sums SEC(".maps");

COUNTERS(histogram, SLOTS);

struct event {
	u64 at;
	u64 queue_ns;
	u64 device_ns;
	u64 sector;
	u32 bytes;
	u32 op;
	s32 error;
	u32 unused;
	char disk[32];
	struct who who;
};

static __always_inline void note(struct request *rq, bool issue)
{
	u64 id = (u64)rq, now = bpf_ktime_get_ns();
	struct seen fresh = {}, *seen;

	seen = bpf_map_lookup_elem(&requests, &id);
	if (seen) {
		if (issue)
			seen->issued = now;
		return;
	}
	fresh.made = rq->start_time_ns ?: now;
	fresh.issued = issue ? now : 0;
	tell_who(&fresh.who, bpf_get_current_task_btf());
	if (bpf_map_update_elem(&requests, &id, &fresh, BPF_ANY))
		count_lost();
}

SEC("tp_btf/block_rq_insert")
int BPF_PROG(blkio_insert, struct request *rq)
{
	note(rq, false);
	return 0;
}

SEC("tp_btf/block_rq_issue")
int BPF_PROG(blkio_issue, struct request *rq)
{
	note(rq, true);
	return 0;
}

SEC("tp_btf/block_rq_complete")
int BPF_PROG(blkio_complete, struct request *rq, unsigned char error, unsigned int bytes)
{
	u64 id = (u64)rq, now = bpf_ktime_get_ns(), queue, device, charged;
	struct io_sums none = {}, *sum;
	struct gendisk *disk = rq->q->disk;
	struct key key = {};
	struct event *event;
	struct seen *seen;

	seen = bpf_map_lookup_elem(&requests, &id);
	if (!seen)
		return 0; /* on its way before we looked */
	if (!seen->issued)
		seen->issued = seen->made;
	queue = seen->issued > seen->made ? seen->issued - seen->made : 0;
	device = now - seen->issued;
	charged = BPF_CORE_READ(rq, bio, bi_blkg, blkcg, css.cgroup, kn, id);
	if (charged)
		seen->who.cgroup = charged;
	if (config.tgid && seen->who.tgid != config.tgid)
		goto out;
	if (config.cgroup && seen->who.cgroup != config.cgroup)
		goto out;
	count_slot(&histogram, log2_slot((queue + device) / 1000));
	key.cgroup = seen->who.cgroup;
	key.op = rq->cmd_flags & 0xff; /* REQ_OP_MASK, include/linux/blk_types.h */
	key.tgid = seen->who.tgid;
	__builtin_memcpy(key.comm, seen->who.comm, sizeof(key.comm));
	if (disk)
		bpf_probe_read_kernel_str(key.disk, sizeof(key.disk), disk->disk_name);
	sum = find_or_make(&sums, &key, &none);
	if (sum) {
		__sync_fetch_and_add(&sum->count, 1);
		__sync_fetch_and_add(&sum->bytes, bytes);
		__sync_fetch_and_add(&sum->queue_ns, queue);
		__sync_fetch_and_add(&sum->device_ns, device);
		if (queue + device > sum->max_ns)
			sum->max_ns = queue + device;
		if (error)
			__sync_fetch_and_add(&sum->errors, 1);
	} else {
		count_lost();
	}
	if (queue + device >= config.threshold_ns || error) {
		event = new_event(sizeof(*event));
		if (!event)
			goto out;
		event->at = now;
		event->queue_ns = queue;
		event->device_ns = device;
		event->sector = rq->__sector;
		event->bytes = bytes;
		event->op = key.op;
		event->error = error;
		event->unused = 0;
		__builtin_memcpy(event->disk, key.disk, sizeof(event->disk));
		event->who = seen->who;
		bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	}
out:
	bpf_map_delete_elem(&requests, &id);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
