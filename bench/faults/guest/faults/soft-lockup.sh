# A BPF program keeps a processor for 15 s without a break (a module is not needed for that).
start() {
    cat /proc/sys/kernel/watchdog_thresh >$LAB/thresh
    echo 3 >/proc/sys/kernel/watchdog_thresh
    python3 /run/lab/lockup.py 15 >/dev/null 2>&1
}
stop() {
    cat $LAB/thresh >/proc/sys/kernel/watchdog_thresh
}
