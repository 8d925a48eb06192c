# A script runs one short program after the other.
start() {
    spawn script -- sh -c 'while :; do /bin/true; done'
    sleep 2
}
stop() { unspawn script; }
