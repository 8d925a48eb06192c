# A service logs all it does, in a loop.
start() {
    spawn victim -- sh -c 'while :; do echo "level=debug msg=\"polling\""; done'
    sleep 2
}
stop() {
    unspawn victim
    systemctl daemon-reload
    journalctl --quiet --rotate --vacuum-size=1M
}
