# A server does not wait for its children, until it may have no more.
start() {
    touch $LAB/leak
    spawn victim TasksMax=80 -- python3 -c 'import os, time
while os.path.exists("/var/lab/leak"):
    try:
        if os.fork() == 0:
            os._exit(0)
    except OSError:
        os.unlink("/var/lab/leak")
time.sleep(600)'
    sleep 5
}
stop() {
    rm -f $LAB/leak
    unspawn victim
}
