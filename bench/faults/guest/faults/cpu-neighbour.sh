# A service with a large weight takes both processors.
start() {
    spawn noisy CPUWeight=10000 -- sh -c 'for i in 1 2 3 4; do (while :; do :; done) & done; wait'
    spawn victim -- sh -c 'while :; do i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; sleep 0.02; done'
    sleep 3
}
stop() {
    unspawn noisy victim
}
