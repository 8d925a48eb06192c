# What faults and twins are made of. Each file has start() and stop(); stop() takes away what start()
# made, so that the next one finds a sound machine: it is no repair, and is not counted as one.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
LAB=/var/lab
mkdir -p "$LAB" /mnt/lab

# spawn NAME [PROPERTY=VALUE ...] -- COMMAND ...: a service lab-NAME of its own.
spawn() {
    name=$1
    shift
    properties=
    while [ "$1" != -- ]; do
        properties="$properties -p $1"
        shift
    done
    shift
    # shellcheck disable=SC2086
    systemd-run --quiet --collect --unit="lab-$name" $properties -- "$@"
}

unspawn() {
    for name in "$@"; do
        systemctl kill -s KILL "lab-$name.service" 2>/dev/null
        systemctl stop "lab-$name.service" 2>/dev/null
        systemctl reset-failed "lab-$name.service" 2>/dev/null
        rm -rf "/run/systemd/system/lab-$name.service.d"
    done
    return 0
}

# loop MIB: a loop device of that size; its name is in $LOOP.
loop() {
    rm -f "$LAB/disk.img"
    truncate -s "$1M" "$LAB/disk.img"
    LOOP=$(losetup --find --show "$LAB/disk.img")
}

unloop() {
    umount -q /mnt/lab
    dmsetup remove --retry lab-disk 2>/dev/null
    losetup --detach-all
    rm -f "$LAB/disk.img"
    return 0
}

# filesystem MIB [mkfs option ...]: ext4 on a loop device at /mnt/lab.
filesystem() {
    loop "$1"
    shift
    mkfs.ext4 -q -F "$@" "$LOOP"
    mount "$LOOP" /mnt/lab
}

# mapped MIB TARGET: a device lab-disk over a loop device; LOOP in TARGET is its name.
mapped() {
    loop "$1"
    sectors=$(($1 * 2048))
    echo "0 $sectors $(echo "$2" | sed "s|LOOP|$LOOP|")" | dmsetup create lab-disk
}
