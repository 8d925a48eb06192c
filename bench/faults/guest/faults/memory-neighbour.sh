# Two services in a slice of 220 MiB: one goes through 170 MiB again and again, the other reads 80.
start() {
    systemctl set-property --runtime lab.slice MemoryMax=220M
    spawn victim Slice=lab.slice -- sh -c "head -c 83886080 /dev/zero >$LAB/data; sync; while :; do cat $LAB/data >/dev/null; done"
    # The one who first has a page pays for it: the reader writes its file itself, and has it.
    until [ "$(cat /sys/fs/cgroup/lab.slice/lab-victim.service/memory.current)" -gt 80000000 ]; do sleep 1; done
    spawn noisy Slice=lab.slice -- python3 -c 'data = bytearray(170 << 20)
while True:
    for i in range(0, len(data), 4096):
        data[i] = (data[i] + 1) & 255'
    sleep 12
}
stop() {
    unspawn noisy victim
    systemctl stop lab.slice
    systemctl revert lab.slice 2>/dev/null
    rm -f $LAB/data
}
