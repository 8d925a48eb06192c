# A backup froze a file system and forgot it; a program writes there.
start() {
    filesystem 32
    fsfreeze --freeze /mnt/lab
    spawn victim -- sh -c 'echo x >/mnt/lab/file; sleep 600'
    sleep 1
}
stop() {
    fsfreeze --unfreeze /mnt/lab
    unspawn victim
    unloop
}
