# Everything is read once, and packed.
start() {
    spawn backup -- sh -c 'while :; do tar -cf - /usr/lib /usr/share 2>/dev/null | zstd -1 -q >/dev/null; done'
    sleep 3
}
stop() { unspawn backup; }
