# dm-delay: each request takes 300 ms more.
start() {
    mapped 32 'delay LOOP 0 300'
    spawn victim -- sh -c 'while :; do dd if=/dev/mapper/lab-disk of=/dev/null bs=4k count=4 iflag=direct status=none; done'
    sleep 2
}
stop() {
    unspawn victim
    sleep 1
    unloop
}
