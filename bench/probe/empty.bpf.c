/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * Does nothing on each switch: what any BPF program there costs at the least.
 */
#include "tegu.bpf.h"

SEC("tp_btf/sched_switch")
int BPF_PROG(empty_switch)
{
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
