# A service says a lot as it starts, and then little.
start() {
    spawn talker -- sh -c 'i=0; while [ $i -lt 400 ]; do echo "starting part $i"; i=$((i+1)); done; while :; do echo tick; sleep 0.5; done'
    sleep 3
}
stop() { unspawn talker; }
