# A mail spool that nobody empties takes the last inode.
start() {
    filesystem 32 -N 600
    mkdir /mnt/lab/spool
    spawn victim -- python3 -c 'import itertools, time
for i in itertools.count():
    try:
        open(f"/mnt/lab/spool/{i}", "x").close()
    except OSError:
        time.sleep(1)'
    sleep 3
}
stop() {
    unspawn victim
    unloop
}
