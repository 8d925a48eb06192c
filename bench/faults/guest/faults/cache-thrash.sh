# A service reads 96 MiB over and over within a limit of 64 MiB.
start() {
    head -c 100663296 /dev/zero >$LAB/data
    sync
    echo 1 >/proc/sys/vm/drop_caches
    spawn victim MemoryMax=64M -- sh -c "while :; do cat $LAB/data >/dev/null; done"
    sleep 4
}
stop() {
    unspawn victim
    rm -f $LAB/data
}
