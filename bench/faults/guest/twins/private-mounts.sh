# Services that hide parts of the machine's tree have mount namespaces of their own, by right.
start() {
    filesystem 32
    spawn hidden PrivateTmp=yes ProtectSystem=strict ProtectHome=yes PrivateDevices=yes -- sleep 600
    sleep 2
}
stop() {
    unspawn hidden
    unloop
}
