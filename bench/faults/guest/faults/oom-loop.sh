# A service needs more than its limit, is killed and started again, for ever.
start() {
    spawn victim MemoryMax=24M MemorySwapMax=0 Restart=always RestartSec=200ms StartLimitIntervalSec=0 -- \
        sh -c 'x=$(head -c 28000000 /dev/zero | tr "\\0" x); sleep 600'
    sleep 8
}
stop() {
    unspawn victim
}
