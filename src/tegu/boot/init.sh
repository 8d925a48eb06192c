#!/bin/busybox sh
# shellcheck shell=dash disable=SC1091,SC2015,SC2154,SC3057
# (busybox has substrings; what is loaded, and how, is in /lib/tegu/load, which is made per kernel)
#
# The first program of a Tegu machine: finds the root file system and hands over to it.
#
# Read from the kernel's command line (bootparam(7)): root= rootfstype= rootflags= ro rw init=, and
#   tegu.wait=SECONDS  how long to wait for the root device (default 30)
#   tegu.overlay       keep what is written to / in memory, for a root that cannot be written to
#   tegu.shell         open a shell on the console when the root cannot be mounted
#   tegu.verity=ROOTHASH:SALT:BLOCKS       the root is a slot, and checked by dm-verity
#   tegu.slots=ROOT:TREE,ROOT:TREE         partitions (GUIDs) of slot a and slot b
#   tegu.data=GUID                         the partition of /var, with what is changed below /etc
# All else, and what follows `--`, is for the system's own init.
#
# It forks as little as it can: on small machines each process costs more than the work it does.

set -f
PATH=/bin
root='' type='' flags='' mode=ro init=/sbin/init wait=30 shell='' overlay='' device=''
verity='' slots='' data='' slot=''

say() {
	echo "tegu-initrd: $1" >/dev/console
}

# Leaving makes the kernel panic, which `panic=SECONDS` turns into a reboot.
fail() {
	say "$1"
	if [ -n "$shell" ]; then
		say 'a shell follows; leave it to reboot'
		exec </dev/console >/dev/console 2>&1
		setsid cttyhack sh
		reboot -f
	fi
	say 'add tegu.shell to the command line for a shell here'
	exit 1
}

. /lib/tegu/load

# The GUID of a GPT entry as 32 digits in the order in which they are on the disk (UEFI 5.3.3).
on_disk_order() {
	set -- "${1:0:8}" "${1:9:4}" "${1:14:4}" "${1:19:4}${1:24:12}"
	echo "${1:6:2}${1:4:2}${1:2:2}${1:0:2}${2:2:2}${2:0:2}${3:2:2}${3:0:2}$4"
}

# Kernels before 6.8 do not say PARTUUID in uevent files: read the disks' tables.
find_in_tables() {
	wanted=$(on_disk_order "$1")
	set +f
	for disk in /sys/block/*; do
		disk=${disk##*/}
		case $disk in loop* | ram* | sr* | zram* | fd*) continue ;; esac
		number=$(dd if="/dev/$disk" bs=512 skip=2 count=32 2>/dev/null |
			hexdump -v -e '128/1 "%02x" "\n"' | cut -c33-64 | grep -n "^$wanted\$")
		number=${number%%:*}
		[ -n "$number" ] || continue
		for part in /sys/block/"$disk"/"$disk"*/partition; do
			[ -e "$part" ] && read -r is <"$part" && [ "$is" = "$number" ] || continue
			part=${part%/partition}
			device=/dev/${part##*/}
		done
	done
	set -f
	[ -n "$device" ]
}

# The partition that its uevent file calls so: $1 is PARTUUID or PARTNAME.
find_event() {
	set +f
	told=''
	for event in /sys/class/block/*/uevent; do
		[ -e "$event" ] || continue
		name=''
		while read -r line; do
			case $line in
			DEVNAME=*) name=${line#DEVNAME=} ;;
			"$1=$2") device=/dev/$name ;;
			"$1="*) told=yes ;;
			esac
		done <"$event"
		[ -n "$device" ] && break
	done
	set -f
	[ -n "$device" ]
}

find_partition() {
	find_event PARTUUID "$1" || { [ -z "$told" ] && find_in_tables "$1"; }
}

# Make the hash of the salt and the top of slot $1's tree, and compare: a slot that was not written
# to its end has no top.
is_slot() {
	device=''
	find_partition "$1" || return 1
	# shellcheck disable=SC2059
	top=$({
		printf "$binary_salt"
		dd if="$device" bs=4096 skip=1 count=1 2>/dev/null
	} | sha256sum)
	[ "${top%% *}" = "$hash" ]
}

find_slot() {
	device=''
	# All of them are on one disk: when the last is there the others are.
	find_partition "$data" || return 1
	for slot in a b; do
		case $slot in a) pair=${slots%%,*} ;; *) pair=${slots#*,} ;; esac
		is_slot "${pair#*:}" || continue
		tree=$device device=''
		find_partition "${pair%%:*}" && return 0
	done
	fail "no slot has the system $hash"
}

# Open the slot that was found: what is read from it is checked block by block.
open_slot() {
	rest=${verity#*:}
	dmsetup create root --readonly --noudevsync --noudevrules --table \
		"0 $((${rest#*:} * 8)) verity 1 $device $tree 4096 4096 ${rest#*:} 1 sha256 $hash ${rest%%:*}" ||
		fail "cannot open $device with its hash tree $tree"
	# The only one here; its name in /dev/mapper is for udev to make.
	device=/dev/dm-0 type=erofs mode=ro
}

# /var is a partition of its own; below it lie the changes to /etc, and what people keep.
mount_data() {
	device=''
	find_partition "$data" || fail "there is no partition $data"
	file_system ext4
	file_system overlay
	mkdir /run/tegu-root
	mount -o bind /sysroot /run/tegu-root
	mount -t ext4 -o rw "$device" /sysroot/var || fail "cannot mount $device (ext4) at /var"
	# The package database is that of the system that runs, whatever ran before.
	[ -d /run/tegu-root/var/lib/dpkg ] && mkdir -p /sysroot/var/lib/dpkg &&
		mount -o bind /run/tegu-root/var/lib/dpkg /sysroot/var/lib/dpkg
	umount -l /run/tegu-root
	rmdir /run/tegu-root
	changes=/sysroot/var/lib/tegu/etc
	mkdir -p "$changes/upper" "$changes/work"
	mount -t overlay -o "lowerdir=/sysroot/etc,upperdir=$changes/upper,workdir=$changes/work" \
		overlay /sysroot/etc || fail 'cannot lay the changes over /etc'
	for place in home root srv; do
		kept=/sysroot/var/lib/tegu/$place
		if [ ! -d "$kept" ]; then
			rm -rf "$kept.new"
			cp -a "/sysroot/$place" "$kept.new" && mv "$kept.new" "$kept"
		fi
		mount -o bind "$kept" "/sysroot/$place" || fail "cannot mount /$place"
	done
}

find_root() {
	[ -n "$verity" ] && { find_slot; return; }
	case $root in
	PARTUUID=*) find_partition "${root#PARTUUID=}" ;;
	PARTLABEL=*) find_event PARTNAME "${root#PARTLABEL=}" ;;
	UUID=* | LABEL=*) device=$(findfs "$root" 2>/dev/null) && [ -b "$device" ] ;;
	*) device=$root && [ -b "$device" ] ;;
	esac
}

uptime_now() {
	read -r now _ </proc/uptime
	now=${now%.*}
}

mount -t proc -o nosuid,noexec,nodev proc /proc
mount -t sysfs -o nosuid,noexec,nodev sysfs /sys
mount -t devtmpfs -o mode=755,nosuid devtmpfs /dev
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run

read -r line </proc/cmdline
for word in $line; do
	case $word in
	root=*) root=${word#root=} ;;
	rootfstype=*) type=${word#rootfstype=} ;;
	rootflags=*) flags=${word#rootflags=} ;;
	init=*) init=${word#init=} ;;
	ro | rw) mode=$word ;;
	tegu.wait=*) wait=${word#tegu.wait=} ;;
	tegu.overlay) overlay=yes ;;
	tegu.verity=*) verity=${word#tegu.verity=} ;;
	tegu.slots=*) slots=${word#tegu.slots=} ;;
	tegu.data=*) data=${word#tegu.data=} ;;
	tegu.shell) shell=yes ;;
	esac
done
if [ -n "$verity" ]; then
	[ -n "$slots" ] && [ -n "$data" ] || fail 'tegu.verity= needs tegu.slots= and tegu.data='
	root="PARTUUID=$data" hash=${verity%%:*}
	salt=${verity#*:}
	binary_salt=$(echo "${salt%%:*}" | sed 's/../\\x&/g')
fi
[ -n "$root" ] || fail 'the command line has no root='
case $wait in '' | *[!0-9]*) wait=30 ;; esac
case $root in
PARTUUID=*[A-F]*) root=PARTUUID=$(echo "${root#PARTUUID=}" | tr A-F a-f) ;;
esac
case $root in /dev/* | PARTUUID=* | PARTLABEL=* | UUID=* | LABEL=*) ;;
*) fail "root=$root is none of PARTUUID=, PARTLABEL=, UUID=, LABEL= and /dev/..." ;; esac

# Hyper-V's bus shows up as an ACPI device; looking there once is enough.
once=$acpi_devices
uptime_now
started=$now
deadline=$((now + wait))
load_always
until find_root; do
	scan driver_for
	once=''
	find_root && break
	uptime_now
	[ "$now" -lt "$deadline" ] || fail "no $root after $wait s; drivers loaded:$loaded"
	# ATA controllers are on most virtual boards, with nothing behind them, and slow to find out.
	[ $((now - started)) -gt 1 ] && scan slow_driver_for
	usleep 10000
done

[ -n "$verity" ] && open_slot
[ -n "$type" ] && file_system "$type"
[ -n "$overlay" ] && { file_system overlay; mode=ro; }
options=$mode
[ -n "$flags" ] && options=$options,$flags
mount ${type:+-t "$type"} -o "$options" "$device" /sysroot ||
	fail "cannot mount $device (${type:-any type}, $options)"

if [ -n "$overlay" ]; then
	mkdir /run/tegu-overlay
	mount -t tmpfs -o mode=755 tmpfs /run/tegu-overlay
	mkdir /run/tegu-overlay/upper /run/tegu-overlay/work /run/tegu-overlay/lower
	mount -o move /sysroot /run/tegu-overlay/lower
	mount -t overlay -o \
		lowerdir=/run/tegu-overlay/lower,upperdir=/run/tegu-overlay/upper,workdir=/run/tegu-overlay/work \
		overlay /sysroot || fail 'cannot lay an overlay over the root'
fi

if [ -n "$verity" ]; then
	mount_data
	mkdir /run/tegu
	echo "$slot" >/run/tegu/slot
fi

# Tell the system whether its disk has room behind the root partition (MiB and more), so that a
# machine with nothing to grow starts no process to find that out.
mkdir -p /run/tegu
part=/sys/class/block/${device##*/}
if [ -e "$part/partition" ] && read -r start <"$part/start" && read -r size <"$part/size" &&
	read -r whole <"$part/../size" && [ $((whole - start - size)) -gt 4096 ]; then
	echo "$device" >/run/tegu/grow
fi
echo "$device" >/run/tegu/initrd

[ -x "/sysroot$init" ] || [ -L "/sysroot$init" ] || fail "$device has no $init"
for place in run dev sys proc; do
	mount -o move "/$place" "/sysroot/$place" || fail "$device has no directory /$place"
done
exec switch_root /sysroot "$init" "$@"
