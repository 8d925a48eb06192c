# A file system is unmounted, but a private mount namespace still has it.
start() {
    filesystem 32
    spawn victim -- unshare --mount --propagation private sleep 600
    sleep 2
    umount /mnt/lab
}
stop() {
    unspawn victim
    unloop
}
