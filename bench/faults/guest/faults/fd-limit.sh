# A server forgets to close its files.
start() {
    spawn victim LimitNOFILE=256:4096 -- python3 -c 'import time
files = []
while len(files) < 600:
    try:
        files.append(open("/etc/hostname"))
    except OSError:
        time.sleep(1)
        break
time.sleep(600)'
    sleep 3
}
stop() {
    unspawn victim
}
