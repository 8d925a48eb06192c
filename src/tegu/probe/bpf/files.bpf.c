/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * Who writes which file, and what fills the page cache?
 *
 * Counted where a folio of a file becomes dirty and where one is added to the cache: the task that
 * does it is the one that writes or reads, long before the disk hears of it.
 */
#include "tegu.bpf.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct qstr {
	const unsigned char *name;
};
struct hlist_node {
	struct hlist_node *next;
};
struct hlist_head {
	struct hlist_node *first;
};
union dentry_links {
	struct hlist_node d_alias;
};
struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
	union dentry_links d_u;
};
struct super_block {
	u32 s_dev;
};
struct inode {
	unsigned long i_ino;
	u32 i_rdev;
	struct super_block *i_sb;
	struct hlist_head i_dentry;
};
struct address_space {
	struct inode *host;
};
struct folio {
	struct address_space *mapping;
};
struct folio___small {
	unsigned int _folio_nr_pages;
};
struct folio___newer {
	unsigned int _nr_pages;
};
enum pageflags {
	PG_head,
};
#pragma clang attribute pop

struct key {
	u64 inode;
	u64 cgroup;
	u32 device;
	u32 tgid;
	char comm[TASK_COMM_LEN];
};

struct pages {
	u64 dirtied;
	u64 added;
	char name[64];
	char parent[32];
	u32 disk;		/* what the inode of a block device stands for */
	u32 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct key);
	__type(value, struct pages);
} sums SEC(".maps");

/* A folio's first word is its flags (struct page). */
static __always_inline u64 size_of(struct folio *folio)
{
	u64 flags = 0, pages = 1;

	bpf_probe_read_kernel(&flags, sizeof(flags), folio);
	if (!(flags >> bpf_core_enum_value(enum pageflags, PG_head) & 1))
		return 1;
	if (bpf_core_field_exists(((struct folio___newer *)0)->_nr_pages))
		pages = BPF_CORE_READ((struct folio___newer *)folio, _nr_pages);
	else if (bpf_core_field_exists(((struct folio___small *)0)->_folio_nr_pages))
		pages = BPF_CORE_READ((struct folio___small *)folio, _folio_nr_pages);
	return pages ? pages : 1;
}

static __always_inline void tell_name(struct pages *pages, struct inode *inode)
{
	struct hlist_node *alias = BPF_CORE_READ(inode, i_dentry.first);
	struct dentry *dentry;

	pages->disk = BPF_CORE_READ(inode, i_rdev);
	if (!alias)
		return;
	dentry = (void *)alias - bpf_core_field_offset(struct dentry, d_u);
	bpf_probe_read_kernel_str(pages->name, sizeof(pages->name),
				  BPF_CORE_READ(dentry, d_name.name));
	bpf_probe_read_kernel_str(pages->parent, sizeof(pages->parent),
				  BPF_CORE_READ(dentry, d_parent, d_name.name));
}

static __always_inline void note(struct folio *folio, struct address_space *mapping, bool dirty)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct pages fresh = {}, *pages;
	struct inode *inode;
	struct key key = {};
	u64 size;

	if (!mapping || !wanted(task))
		return;
	inode = BPF_CORE_READ(mapping, host);
	if (!inode)
		return;
	key.inode = BPF_CORE_READ(inode, i_ino);
	key.device = BPF_CORE_READ(inode, i_sb, s_dev);
	key.cgroup = cgroup_id_of(task);
	key.tgid = task->tgid;
	bpf_probe_read_kernel(key.comm, sizeof(key.comm), task->comm);
	size = size_of(folio);
	pages = bpf_map_lookup_elem(&sums, &key);
	if (!pages) {
		tell_name(&fresh, inode);
		bpf_map_update_elem(&sums, &key, &fresh, BPF_NOEXIST);
		pages = bpf_map_lookup_elem(&sums, &key);
		if (!pages) {
			count_lost();
			return;
		}
	}
	__sync_fetch_and_add(dirty ? &pages->dirtied : &pages->added, size);
}

SEC("tp_btf/writeback_dirty_folio")
int BPF_PROG(files_dirty, struct folio *folio, struct address_space *mapping)
{
	note(folio, mapping, true);
	return 0;
}

SEC("tp_btf/mm_filemap_add_to_page_cache")
int BPF_PROG(files_add, struct folio *folio)
{
	note(folio, folio->mapping, false);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
