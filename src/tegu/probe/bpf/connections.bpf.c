/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * How long do connections take to be made, which fail, and what goes over them?
 *
 * A socket's changes of state: who connects is known when the first segment is sent; what went over
 * the connection is read from it as it closes.
 */
#include "tegu_net.bpf.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct tcp_sock {
	u64 bytes_received;
	u64 bytes_acked;
	u32 srtt_us;		/* eight times the smoothed round trip */
	u32 total_retrans;
};
#pragma clang attribute pop

#define IPPROTO_TCP 6

struct made {
	u64 since;		/* the first segment */
	u64 established;
	u64 took_ns;		/* 0: they came to us */
	u64 port;		/* our side's; a socket that closes has lost it */
	struct who who;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, u64);
	__type(value, struct made);
} sockets SEC(".maps");

struct key {
	u64 cgroup;
	char comm[TASK_COMM_LEN];
	u32 namespace;
	u16 family;
	u16 port;		/* that of the server's side */
	u8 other[16];
	u32 passive;
	u32 unused;
};

struct flow_sums {
	struct sums made;	/* time until it was there */
	u64 failed;
	u64 closed;
	u64 sent;
	u64 received;
	u64 again;		/* segments */
	u64 round_trip_us;	/* of the last that closed */
	s64 error;		/* of the last that failed */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct key);
	__type(value, struct flow_sums);
} sums SEC(".maps");

COUNTERS(histogram, SLOTS);

enum { SLOW, FAILED };

struct event {
	u64 at;
	u64 took_ns;
	u32 kind;
	s32 error;
	u32 namespace;
	u16 family;
	u16 port;
	u8 other[16];
	struct who who;
};

static __always_inline struct flow_sums *sums_of(const struct sock *sk, struct made *made,
						 bool passive)
{
	struct flow_sums none = {};
	struct key key = {};

	key.family = sk->__sk_common.skc_family;
	key.namespace = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	key.passive = passive;
	other_address(key.other, sk);
	if (passive) {
		key.port = made->port;
		key.cgroup = BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn, id);
	} else {
		key.port = bpf_ntohs(sk->__sk_common.skc_dport);
		key.cgroup = made->who.cgroup;
		__builtin_memcpy(key.comm, made->who.comm, sizeof(key.comm));
	}
	return find_or_make(&sums, &key, &none);
}

static __always_inline void tell(u32 kind, const struct sock *sk, struct made *made, u64 now,
				 s32 error)
{
	struct event *event = new_event(sizeof(*event));

	if (!event)
		return;
	__builtin_memset(event, 0, sizeof(*event));
	event->at = now;
	event->took_ns = now - made->since;
	event->kind = kind;
	event->error = error;
	event->namespace = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	event->family = sk->__sk_common.skc_family;
	event->port = bpf_ntohs(sk->__sk_common.skc_dport);
	other_address(event->other, sk);
	event->who = made->who;
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}


SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(connections_state, const struct sock *sk, int from, int to)
{
	u64 id = (u64)sk, now = bpf_ktime_get_ns();
	const struct tcp_sock *tcp = (void *)sk;
	struct made fresh = {}, *made;
	struct flow_sums *sum;
	bool passive;

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (to == TCP_SYN_SENT) {
		struct task_struct *task = bpf_get_current_task_btf();

		if (!wanted(task))
			return 0;
		fresh.since = now;
		tell_who(&fresh.who, task);
		bpf_map_update_elem(&sockets, &id, &fresh, BPF_ANY);
		return 0;
	}
	made = bpf_map_lookup_elem(&sockets, &id);
	if (to == TCP_ESTABLISHED) {
		if (made && from == TCP_SYN_SENT) {
			made->took_ns = now - made->since;
			made->established = now;
			count_slot(&histogram, log2_slot(made->took_ns / 1000));
			sum = sums_of(sk, made, false);
			if (sum)
				add(&sum->made, made->took_ns);
			if (made->took_ns >= config.threshold_ns)
				tell(SLOW, sk, made, now, 0);
		} else if (!made && !config.tgid && !config.cgroup) {
			fresh.since = now;
			fresh.established = now;
			fresh.port = sk->__sk_common.skc_num;
			bpf_map_update_elem(&sockets, &id, &fresh, BPF_ANY);
		}
		return 0;
	}
	if (to != TCP_CLOSE || !made)
		return 0;
	passive = !made->who.tid;
	sum = sums_of(sk, made, passive);
	if (!sum) {
		count_lost();
	} else if (from == TCP_SYN_SENT) {
		s32 error = sk->sk_err;

		__sync_fetch_and_add(&sum->failed, 1);
		if (error)
			sum->error = error;
		tell(FAILED, sk, made, now, error);
	} else if (made->established) {
		if (passive)
			add(&sum->made, 0);
		__sync_fetch_and_add(&sum->closed, 1);
		/* The handshake's own octets count as one each way. */
		__sync_fetch_and_add(&sum->sent, BPF_CORE_READ(tcp, bytes_acked));
		__sync_fetch_and_add(&sum->received, BPF_CORE_READ(tcp, bytes_received));
		__sync_fetch_and_add(&sum->again, BPF_CORE_READ(tcp, total_retrans));
		sum->round_trip_us = BPF_CORE_READ(tcp, srtt_us) >> 3;
	}
	bpf_map_delete_elem(&sockets, &id);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
