# A service with a quota that it seldom comes to.
start() {
    spawn job CPUQuota=60% -- sh -c 'while :; do i=0; while [ $i -lt 20 ]; do i=$((i+1)); done; sleep 0.3; done'
    sleep 2
}
stop() { unspawn job; }
