/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * Sockets and packets, for the probes that look at them.
 */
#ifndef TEGU_NET_BPF_H
#define TEGU_NET_BPF_H

#include "tegu.bpf.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct ns_common {
	unsigned int inum;
};
struct net {
	struct ns_common ns;
};
typedef struct {
	struct net *net;
} possible_net_t;
struct net_device {
	char name[16];
	possible_net_t nd_net;
};
struct in6_addr {
	u8 bytes[16];
};
struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	u16 skc_num;
	u16 skc_family;
	u8 skc_state;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	possible_net_t skc_net;
};
struct sock_cgroup_data {
	struct cgroup *cgroup;
};
struct sock {
	struct sock_common __sk_common;
	struct sock_cgroup_data sk_cgrp_data;
	u16 sk_protocol;
	int sk_err;
};
struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	__be16 protocol;
	u16 transport_header;
	u16 network_header;
	unsigned char *head;
	unsigned char *data;
};
#pragma clang attribute pop

#define AF_INET 2
#define AF_INET6 10
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd

/* include/net/tcp_states.h */
enum { TCP_ESTABLISHED = 1, TCP_SYN_SENT = 2, TCP_SYN_RECV = 3, TCP_TIME_WAIT = 6, TCP_CLOSE = 7,
       TCP_NEW_SYN_RECV = 12 };

/* The address of a socket's own side, and of the other. */
static __always_inline void own_address(u8 *to, const struct sock *sk)
{
	if (sk->__sk_common.skc_family == AF_INET)
		bpf_probe_read_kernel(to, 4, &sk->__sk_common.skc_rcv_saddr);
	else
		bpf_probe_read_kernel(to, 16, &sk->__sk_common.skc_v6_rcv_saddr);
}

static __always_inline void other_address(u8 *to, const struct sock *sk)
{
	if (sk->__sk_common.skc_family == AF_INET)
		bpf_probe_read_kernel(to, 4, &sk->__sk_common.skc_daddr);
	else
		bpf_probe_read_kernel(to, 16, &sk->__sk_common.skc_v6_daddr);
}

#endif
