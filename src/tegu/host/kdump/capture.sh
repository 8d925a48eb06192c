#!/bin/busybox sh
# shellcheck shell=dash disable=SC1091,SC2154,SC3045
# (busybox has ulimit -f; the settings come from /etc/kdump.conf, the module functions from
# /lib/tegu/load, both made by `tegu kdump on`)
#
# The first program of the capture kernel: saves the log of the kernel that crashed, then its
# memory, and restarts the machine. Whatever fails, the machine restarts.

set -f
PATH=/bin
export PATH HOME=/root
run=/run core=/proc/vmcore console=/dev/console

say() {
	read -r up _ </proc/uptime
	echo "tegu-kdump: [$up] $1" >"$console"
	echo "[$up] $1" >>"$run/capture.log"
}

finish() {
	say "done: $after"
	sync
	umount /target 2>/dev/null
	"$after" -f
	echo b >/proc/sysrq-trigger
	sleep 60
}

size_of() {
	stat -c %s "$1" 2>/dev/null || echo 0
}

# --- the log ---------------------------------------------------------------------------------------

read_log() {
	makedumpfile --dump-dmesg "$core" "$run/dmesg.txt" >"$run/tool.log" 2>&1 ||
		say "makedumpfile cannot read the log: $(tail -n 1 "$run/tool.log")"
	[ -s "$run/dmesg.txt" ] && say "log read: $(size_of "$run/dmesg.txt") bytes"
}

# Writes $1 over a file that has its blocks already: on a full disk nothing else can be written.
over() {
	if dd if="$1" of="$2" bs=64k conv=notrunc,fsync 2>"$run/tool.log"; then
		truncate -s "$(size_of "$1")" "$2"
	else
		# The end tells more than the beginning.
		room=$(size_of "$2")
		tail -c "$room" "$1" | dd of="$2" bs=64k conv=notrunc,fsync 2>"$run/tool.log"
	fi
}

# --- the memory ------------------------------------------------------------------------------------

# What the last program complained of, in one line.
complaint() {
	grep -iE 'no space|too large|error|fail|can.t' "$run/tool.log" | head -n 1
}

# From here on this process writes no file larger than the bound: write(2) then fails with EFBIG.
limited() {
	trap '' XFSZ
	ulimit -f "$blocks"
}

dump_to() {
	(
		limited
		# shellcheck disable=SC2086
		makedumpfile $compression -d "$level" --message-level 4 "$core" "$1" >"$run/tool.log" 2>&1
	)
}

oldest_core() {
	set +f
	for old in "$dir"/*/vmcore; do
		set -f
		[ -f "$old" ] && echo "$old"
		return
	done
}

save_memory() {
	until dump_to "$incoming/vmcore.partial"; do
		why="exit code $?: $(complaint)"
		# Not what the program says: on a disk without a free block makedumpfile says nothing.
		free=$(stat -f -c %f "$incoming")
		rm -f "$incoming/vmcore.partial"
		if [ "$free" -lt 256 ]; then
			# An older dump's memory goes, its log stays.
			old=$(oldest_core)
			[ -n "$old" ] || { say 'no space for the memory: only the log is kept'; return 1; }
			say "no space: removing $old"
			rm -f "$old"
		elif grep -qi 'too large' "$run/tool.log"; then
			say 'the memory is larger than max_size: only the log is kept'
			return 1
		else
			say "makedumpfile failed ($why); copying all memory instead"
			(limited; dd if="$core" of="$incoming/vmcore.partial" bs=1M 2>"$run/tool.log") && break
			say "copying failed: $(tail -n 1 "$run/tool.log")"
			rm -f "$incoming/vmcore.partial"
			return 1
		fi
	done
	sync && mv "$incoming/vmcore.partial" "$incoming/vmcore" &&
		say "memory saved: $(size_of "$incoming/vmcore") bytes"
}

to_disk() {
	tries=0
	until disk=$(findfs "UUID=$uuid" 2>/dev/null) && [ -b "$disk" ]; do
		scan driver_for
		once=''
		tries=$((tries + 1))
		[ $tries -gt 20 ] && scan slow_driver_for
		[ $tries -lt 300 ] || { say "no file system with UUID $uuid"; return 1; }
		usleep 100000
	done
	file_system "$fstype"
	mount -t "$fstype" -o "$options" "$disk" /target || { say "cannot mount $disk"; return 1; }
	dir=/target$path
	incoming=$dir/.incoming
	mkdir -p "$incoming"
	say "log goes to $disk, $path"
	over "$run/dmesg.txt" "$incoming/dmesg.txt"
	sync
	say 'log saved'
	save_memory
	over "$run/capture.log" "$incoming/capture.log"
	name=$(date -u +%Y-%m-%dT%H-%M-%SZ)
	[ -e "$dir/$name" ] && name=$name-2
	mv "$incoming" "$dir/$name" || say 'cannot rename; it stays in .incoming'
}

# --- over the network ------------------------------------------------------------------------------

network() {
	tries=0
	link=''
	while [ -z "$link" ]; do
		scan driver_for
		set +f
		for place in /sys/class/net/*; do
			[ -e "$place/address" ] && read -r is <"$place/address" && [ "$is" = "$mac" ] &&
				link=${place##*/}
		done
		set -f
		tries=$((tries + 1))
		[ $tries -lt 300 ] || { say "no network device with the address $mac"; return 1; }
		[ -n "$link" ] || usleep 100000
	done
	ip link set lo up
	ip link set "$link" up
	for one in $addresses; do
		ip addr add "$one" dev "$link"
	done
	if [ -n "$gateway" ]; then
		ip route add "$gateway" dev "$link" 2>/dev/null
		ip route add "$peer" via "$gateway" dev "$link"
	fi
	tries=0
	until read -r up <"/sys/class/net/$link/carrier" && [ "$up" = 1 ]; do
		tries=$((tries + 1))
		[ $tries -lt 100 ] || break
		usleep 100000
	done 2>/dev/null
	say "network up: $link"
}

remote() {
	ssh -T -p "$port" -i /root/key -o BatchMode=yes -o StrictHostKeyChecking=yes \
		-o UserKnownHostsFile=/root/known_hosts -o "HostKeyAlias=$alias_name" \
		-o ConnectTimeout=20 -o ServerAliveInterval=15 -l "$user" "$peer" "$1"
}

to_ssh() {
	network || return 1
	name=$host_name-$(date -u +%Y-%m-%dT%H-%M-%SZ)
	part="$path/.$name.partial"
	tries=0
	until remote "umask 077; mkdir -p '$part' && cat >'$part/dmesg.txt'" <"$run/dmesg.txt" 2>"$run/tool.log"; do
		tries=$((tries + 1))
		[ $tries -lt 5 ] || { say "ssh to $peer failed: $(tail -n 1 "$run/tool.log")"; return 1; }
		sleep 2
	done
	say "log sent to $peer"
	set -o pipefail
	# shellcheck disable=SC2086
	if makedumpfile -F $compression -d "$level" --message-level 4 "$core" 2>"$run/tool.log" |
		remote "head -c $limit >'$part/vmcore.flat.partial' && mv '$part/vmcore.flat.partial' '$part/vmcore.flat'"; then
		say 'memory sent'
	else
		say "the memory could not be sent: $(complaint)"
	fi
	remote "cat >'$part/capture.log' && sync && mv '$part' '$path/$name'" <"$run/capture.log" ||
		say "cannot name the dump: it stays in .$name.partial"
}

# An object store wants the length first. Memory stands still here: what is counted in a first pass
# is what the second one sends.
put() {
	curl -sS -f --retry 3 --connect-timeout 20 -X PUT -H 'Expect:' --resolve "$host:$port:$peer" "$@"
}

dump_to_pipe() {
	# shellcheck disable=SC2086
	makedumpfile -F $compression -d "$level" --message-level 4 "$core" 2>"$run/tool.log"
}

to_http() {
	network || return 1
	name=$host_name-$(date -u +%Y-%m-%dT%H-%M-%SZ)
	core_url=$url
	[ -n "$log_url" ] || { log_url="${url}$name/dmesg.txt" core_url="${url}$name/vmcore.flat"; }
	put -T "$run/dmesg.txt" "$log_url" >"$run/tool.log" 2>&1 ||
		{ say "the log could not be sent: $(tail -n 1 "$run/tool.log")"; return 1; }
	say "log sent to $host"
	set -o pipefail
	bytes=$(dump_to_pipe | wc -c) || { say "makedumpfile failed: $(complaint)"; return 1; }
	[ "$bytes" -le "$limit" ] || { say 'the memory is larger than max_size: only the log is kept'; return 1; }
	dump_to_pipe | put -H 'Transfer-Encoding:' -H "Content-Length: $bytes" --upload-file - "$core_url" >"$run/curl.log" 2>&1 &&
		say "memory sent: $bytes bytes" || say "the memory could not be sent: $(tail -n 1 "$run/curl.log")"
}

# What is above can be tried out by sourcing it; the rest is for the first process.
[ $$ = 1 ] || return 0

mount -t proc -o nosuid,noexec,nodev proc /proc
mount -t sysfs -o nosuid,noexec,nodev sysfs /sys
mount -t devtmpfs -o mode=755,nosuid devtmpfs /dev 2>/dev/null
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run
. /etc/kdump.conf
. /lib/tegu/load
say "capture kernel up; $(grep -E '^MemAvailable' /proc/meminfo | tr -s ' ')"
(
	sleep "$timeout"
	echo "tegu-kdump: not done after $timeout s" >"$console"
	echo b >/proc/sysrq-trigger
) &
once=$acpi_devices
load_always
[ -e "$core" ] || { say 'there is no /proc/vmcore: this kernel was not started by a crash'; finish; }
read_log
[ -s "$run/dmesg.txt" ] || echo 'the log could not be read' >"$run/dmesg.txt"
"to_$kind" || say 'not everything could be saved'
finish
