/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * Keeps a processor for config.ns nanoseconds without a break: what a soft lockup looks like. Run by
 * BPF_PROG_TEST_RUN (guest/lockup.py), on a throw-away machine only.
 */
#include "tegu.bpf.h"

const volatile struct {
	u64 ns;
} lockup_config SEC(".rodata.lockup");

struct state {
	u64 end;
};

static long inner(u32 index, struct state *state)
{
	return bpf_ktime_get_ns() > state->end;
}

static long outer(u32 index, struct state *state)
{
	bpf_loop(1 << 20, inner, state, 0);
	return bpf_ktime_get_ns() > state->end;
}

SEC("raw_tp")
int lockup(void *context)
{
	struct state state = {.end = bpf_ktime_get_ns() + lockup_config.ns};

	bpf_loop(1 << 20, outer, &state, 0);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
