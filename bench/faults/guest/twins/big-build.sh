# Four compilers' worth of work in one service: all processors busy, nobody else wants them.
start() {
    spawn build -- sh -c 'for i in 1 2 3 4; do (while :; do head -c 300000 /usr/bin/python3 | gzip -9 >/dev/null; done) & done; wait'
    sleep 3
}
stop() { unspawn build; }
