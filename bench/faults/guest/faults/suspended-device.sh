# A device-mapper device is suspended while a program writes to it directly.
start() {
    mapped 32 'linear LOOP 0'
    dmsetup suspend lab-disk
    spawn victim -- dd if=/dev/zero of=/dev/mapper/lab-disk bs=4k count=64 oflag=direct
}
stop() {
    dmsetup resume lab-disk
    unspawn victim
    unloop
}
