# 400 removed cgroups are held by files on a tmpfs.
start() {
    mkdir -p /mnt/lab
    mount -t tmpfs -o size=64M tmpfs /mnt/lab
    python3 /run/lab/zombies.py /mnt/lab 400 8192
}
stop() {
    umount -q /mnt/lab
    rmdir /sys/fs/cgroup/lab-zombies
    echo 3 >/proc/sys/vm/drop_caches
}
