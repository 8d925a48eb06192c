/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * Which packets are dropped, why and where? Which TCP connections send again?
 *
 * All are counted in the kernel, by reason, place, protocol and network namespace; nothing is sent
 * for each packet, so that a flood of drops costs little.
 */
#include "tegu_net.bpf.h"

struct drop_key {
	u64 place;
	u64 cgroup;		/* of the socket that sent it, if it has one */
	u32 reason;
	u32 namespace;
	u16 protocol;		/* Ethernet's, host order */
	u8 transport;		/* IP's */
	u8 unused;
	u32 unused2;
	char device[16];
};

/* The last one of its kind, as an example; ports in network order. */
struct drop_value {
	u64 count;
	u8 from[16];
	u8 to[16];
	u16 from_port;
	u16 to_port;
	u32 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct drop_key);
	__type(value, struct drop_value);
} drops SEC(".maps");

struct flow {
	u64 cgroup;
	u32 namespace;
	u16 family;
	u8 state;
	u8 unused;
	u8 from[16];
	u8 to[16];
	u16 from_port;		/* host order */
	u16 to_port;
	u32 unused2;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct flow);
	__type(value, u64);
} retransmits SEC(".maps");

static __always_inline void read_packet(struct sk_buff *skb, struct drop_key *key,
					struct drop_value *value)
{
	void *head = skb->head, *ip = head + skb->network_header;
	void *transport = head + skb->transport_header;

	if (key->protocol == ETH_P_IP) {
		bpf_probe_read_kernel(&key->transport, 1, ip + 9);
		bpf_probe_read_kernel(value->from, 4, ip + 12);
		bpf_probe_read_kernel(value->to, 4, ip + 16);
	} else if (key->protocol == ETH_P_IPV6) {
		bpf_probe_read_kernel(&key->transport, 1, ip + 6);
		bpf_probe_read_kernel(value->from, 16, ip + 8);
		bpf_probe_read_kernel(value->to, 16, ip + 24);
	} else {
		return;
	}
	/* ~0: not set (skb_transport_header_was_set). TCP and UDP begin with their ports. */
	if (skb->transport_header != 0xffff && (key->transport == 6 || key->transport == 17)) {
		bpf_probe_read_kernel(&value->from_port, 2, transport);
		bpf_probe_read_kernel(&value->to_port, 2, transport + 2);
	}
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(drops_free, struct sk_buff *skb, void *location, u32 reason)
{
	struct drop_value fresh = {}, *value;
	struct drop_key key = {};
	struct net_device *dev;
	struct sock *sk;

	dev = skb->dev;
	sk = skb->sk;
	key.place = (u64)location;
	key.reason = reason;
	key.protocol = bpf_ntohs(skb->protocol);
	if (dev) {
		bpf_probe_read_kernel(key.device, sizeof(key.device), dev->name);
		key.namespace = BPF_CORE_READ(dev, nd_net.net, ns.inum);
	} else if (sk) {
		key.namespace = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	}
	if (sk) {
		u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);

		/* Small sockets end before this member. */
		if (state != TCP_TIME_WAIT && state != TCP_NEW_SYN_RECV)
			key.cgroup = BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn, id);
	}
	read_packet(skb, &key, &fresh);
	value = bpf_map_lookup_elem(&drops, &key);
	if (!value) {
		fresh.count = 1;
		if (bpf_map_update_elem(&drops, &key, &fresh, BPF_NOEXIST))
			count_lost();
		return 0;
	}
	__sync_fetch_and_add(&value->count, 1);
	return 0;
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(drops_retransmit, struct sock *sk)
{
	struct flow flow = {};

	flow.cgroup = BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn, id);
	flow.namespace = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	flow.family = sk->__sk_common.skc_family;
	flow.state = sk->__sk_common.skc_state;
	flow.from_port = sk->__sk_common.skc_num;
	flow.to_port = bpf_ntohs(sk->__sk_common.skc_dport);
	own_address(flow.from, sk);
	other_address(flow.to, sk);
	count_in(&retransmits, &flow);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
