# A service that always has work may use a tenth of a processor.
start() {
    spawn victim CPUQuota=10% -- sh -c 'while :; do :; done'
    sleep 2
}
stop() {
    unspawn victim
}
