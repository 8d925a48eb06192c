# A service needs more than its limit, is killed and started again, for ever.
start() {
    # tail keeps a line, however long, in memory.
    spawn victim MemoryMax=24M MemorySwapMax=0 Restart=always RestartSec=200ms StartLimitIntervalSec=0 -- \
        sh -c 'head -c 32000000 /dev/zero | tail >/dev/null; sleep 600'
    sleep 8
}
stop() {
    unspawn victim
}
