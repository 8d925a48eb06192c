# A service at its memory limit reads a large file once through: nothing is read again.
start() {
    head -c 400000000 /dev/zero >$LAB/large
    sync
    echo 1 >/proc/sys/vm/drop_caches
    spawn reader MemoryMax=64M -- sh -c 'dd if=/var/lab/large of=/dev/null bs=64k status=none; sleep 600'
    sleep 1
}
stop() {
    unspawn reader
    rm -f $LAB/large
}
