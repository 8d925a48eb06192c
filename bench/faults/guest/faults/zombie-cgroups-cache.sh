# 400 removed cgroups are held by page cache.
start() {
    mkdir -p $LAB/cache
    python3 /run/lab/zombies.py $LAB/cache 400 16384
}
stop() {
    rm -rf $LAB/cache
    rmdir /sys/fs/cgroup/lab-zombies
    echo 3 >/proc/sys/vm/drop_caches
}
