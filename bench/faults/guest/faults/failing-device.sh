# dm-flakey: all requests fail.
start() {
    mapped 32 'flakey LOOP 0 0 600'
    spawn victim -- sh -c 'while :; do dd if=/dev/mapper/lab-disk of=/dev/null bs=4k count=4 status=none; sleep 0.5; done'
    sleep 2
}
stop() {
    unspawn victim
    unloop
}
