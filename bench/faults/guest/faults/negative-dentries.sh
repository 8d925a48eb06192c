# A program looks for files that do not exist, under ever new names.
start() {
    mkdir -p $LAB/names
    spawn victim -- python3 -c 'import os, time
for i in range(230000):
    os.access(f"/var/lab/names/{i}", 0)
time.sleep(600)'
    while [ "$(cut -f5 /proc/sys/fs/dentry-state)" -lt 200000 ]; do sleep 1; done
}
stop() {
    unspawn victim
    echo 2 >/proc/sys/vm/drop_caches
}
