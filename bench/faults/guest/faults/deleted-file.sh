# A log was removed, its writer still has it open and has filled the file system.
start() {
    filesystem 48
    spawn victim -- python3 -c 'import os, time
fd = os.open("/mnt/lab/service.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.unlink("/mnt/lab/service.log")
block = b"line\n" * 13107
while True:
    try:
        os.write(fd, block)
    except OSError:
        block = b"line\n"
        time.sleep(600)'
    sleep 5
}
stop() {
    unspawn victim
    unloop
}
