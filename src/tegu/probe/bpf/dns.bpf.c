/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * How long do names take to be resolved, and which are never answered?
 *
 * Packets to and from UDP port 53 where devices get and give them (RFC 1035, section 4.1.1: the
 * identifier pairs them). A packet that passes several devices counts as it passes the first.
 */
#include "tegu_net.bpf.h"

#define UDP 17
#define DNS 53
#define QUESTION 80

struct query_key {
	u8 client[16];
	u32 namespace;
	u16 port;
	u16 id;
};

struct query {
	u64 since;
	u8 server[16];
	u32 family;
	u32 length;		/* of the question that was read */
	struct who who;
	u8 question[QUESTION];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct query_key);
	__type(value, struct query);
} queries SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct query);
} scratch SEC(".maps");

COUNTERS(histogram, SLOTS);

struct event {
	u64 at;
	u64 took_ns;
	u32 code;		/* RFC 1035: RCODE */
	u32 unused;
	struct query query;
};

struct server_key {
	u8 server[16];
	u32 family;
	u32 code;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct server_key);
	__type(value, struct sums);
} servers SEC(".maps");

struct packet {
	u8 source[16];
	u8 target[16];
	u16 from;
	u16 to;
	u16 id;
	u16 flags;
	u32 family;
	void *question;
};

/* Reads a packet whose IP header is at `ip`; false when it is none of a name server's. */
static __always_inline bool parse(struct packet *packet, struct sk_buff *skb, void *ip)
{
	u16 protocol = bpf_ntohs(skb->protocol), words[2];
	u8 transport = 0, first = 0;
	void *udp;

	if (protocol == ETH_P_IP) {
		bpf_probe_read_kernel(&first, 1, ip);
		bpf_probe_read_kernel(&transport, 1, ip + 9);
		if (transport != UDP)
			return false;
		udp = ip + (first & 15) * 4;
		packet->family = AF_INET;
	} else if (protocol == ETH_P_IPV6) {
		bpf_probe_read_kernel(&transport, 1, ip + 6);
		if (transport != UDP)
			return false;
		udp = ip + 40;
		packet->family = AF_INET6;
	} else {
		return false;
	}
	if (bpf_probe_read_kernel(words, sizeof(words), udp))
		return false;
	packet->from = bpf_ntohs(words[0]);
	packet->to = bpf_ntohs(words[1]);
	if (packet->from != DNS && packet->to != DNS)
		return false;
	if (bpf_probe_read_kernel(words, sizeof(words), udp + 8))
		return false;
	packet->id = words[0];
	packet->flags = bpf_ntohs(words[1]);
	packet->question = udp + 8 + 12;
	if (packet->family == AF_INET) {
		bpf_probe_read_kernel(packet->source, 4, ip + 12);
		bpf_probe_read_kernel(packet->target, 4, ip + 16);
	} else {
		bpf_probe_read_kernel(packet->source, 16, ip + 8);
		bpf_probe_read_kernel(packet->target, 16, ip + 24);
	}
	return true;
}

static __always_inline void asked(struct packet *packet, struct sk_buff *skb, u32 namespace)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct query_key key = {};
	struct query *query;
	u32 zero = 0;

	if (!wanted(task))
		return;
	__builtin_memcpy(key.client, packet->source, sizeof(key.client));
	key.namespace = namespace;
	key.port = packet->from;
	key.id = packet->id;
	query = bpf_map_lookup_elem(&scratch, &zero);
	if (!query)
		return;
	query->since = bpf_ktime_get_ns();
	query->family = packet->family;
	__builtin_memcpy(query->server, packet->target, sizeof(query->server));
	tell_who(&query->who, task);
	query->length = QUESTION;
	if (bpf_probe_read_kernel(query->question, sizeof(query->question), packet->question))
		query->length = 0;
	/* Sent again with the same identifier, it waits since the first time. */
	bpf_map_update_elem(&queries, &key, query, BPF_NOEXIST);
}

static __always_inline void answered(struct packet *packet, u32 namespace)
{
	u64 now = bpf_ktime_get_ns(), took;
	struct server_key server = {};
	struct query_key key = {};
	struct query *query;
	struct event *event;

	__builtin_memcpy(key.client, packet->target, sizeof(key.client));
	key.namespace = namespace;
	key.port = packet->to;
	key.id = packet->id;
	query = bpf_map_lookup_elem(&queries, &key);
	if (!query)
		return;
	took = now - query->since;
	count_slot(&histogram, log2_slot(took / 1000));
	__builtin_memcpy(server.server, query->server, sizeof(server.server));
	server.family = query->family;
	server.code = packet->flags & 15;
	add_to(&servers, &server, took);
	if (took >= config.threshold_ns || (server.code && server.code != 3)) {
		event = new_event(sizeof(*event));
		if (event) {
			event->at = now;
			event->took_ns = took;
			event->code = server.code;
			event->unused = 0;
			event->query = *query;
			bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
		}
	}
	bpf_map_delete_elem(&queries, &key);
}

static __always_inline void look(struct sk_buff *skb, void *ip)
{
	struct packet packet = {};
	u32 namespace;

	if (!parse(&packet, skb, ip))
		return;
	namespace = BPF_CORE_READ(skb, dev, nd_net.net, ns.inum);
	if (packet.to == DNS && !(packet.flags & 0x8000))
		asked(&packet, skb, namespace);
	else if (packet.from == DNS && packet.flags & 0x8000)
		answered(&packet, namespace);
}

SEC("tp_btf/net_dev_queue")
int BPF_PROG(dns_out, struct sk_buff *skb)
{
	look(skb, BPF_CORE_READ(skb, head) + skb->network_header);
	return 0;
}

SEC("tp_btf/netif_receive_skb")
int BPF_PROG(dns_in, struct sk_buff *skb)
{
	look(skb, BPF_CORE_READ(skb, data));
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
