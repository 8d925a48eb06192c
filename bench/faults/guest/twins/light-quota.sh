# A service with a quota that it seldom comes to. It starts no programs: in an emulated guest that
# gets little of its host, to start one ten times a second is more than its quota, and no twin.
start() {
    spawn job CPUQuota=60% -- bash -c 'exec 3<> <(:); while :; do for i in {1..20}; do :; done; read -r -t 0.3 -u 3; done'
    sleep 4
}
stop() { unspawn job; }
