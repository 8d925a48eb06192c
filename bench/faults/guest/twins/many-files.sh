# A server has 600 of its 1024 descriptors open.
start() {
    spawn server LimitNOFILE=1024 -- python3 -c 'import time
files = [open("/etc/hostname") for _ in range(600)]
time.sleep(600)'
    sleep 2
}
stop() { unspawn server; }
