# A disk is nine tenths full, and some of that is a deleted file that is still open.
start() {
    filesystem 64
    spawn holder -- python3 -c 'import os, time
open("/mnt/lab/data", "wb").write(bytes(38 << 20))
f = open("/mnt/lab/temporary", "wb")
os.unlink("/mnt/lab/temporary")
f.write(bytes(8 << 20))
f.flush()
time.sleep(600)'
    sleep 3
}
stop() {
    unspawn holder
    unloop
}
