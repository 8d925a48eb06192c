# Two services in a slice of 220 MiB: one goes through 170 MiB again and again, the other reads 80.
start() {
    head -c 83886080 /dev/zero >$LAB/data
    sync
    systemctl set-property --runtime lab.slice MemoryMax=220M
    spawn victim Slice=lab.slice -- sh -c "while :; do cat $LAB/data >/dev/null; done"
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
