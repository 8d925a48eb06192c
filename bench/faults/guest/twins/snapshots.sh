# A device is suspended for a moment, again and again, while a program writes: snapshots.
start() {
    mapped 32 'linear LOOP 0'
    mkfs.ext4 -q -F /dev/mapper/lab-disk
    mount /dev/mapper/lab-disk /mnt/lab
    spawn writer -- sh -c 'while :; do echo x >/mnt/lab/file; sync /mnt/lab/file; sleep 0.1; done'
    spawn snapshots -- sh -c 'while :; do dmsetup suspend lab-disk; sleep 0.1; dmsetup resume lab-disk; sleep 1; done'
    sleep 2
}
stop() {
    systemctl stop lab-snapshots.service
    dmsetup resume lab-disk
    unspawn snapshots writer
    unloop
}
