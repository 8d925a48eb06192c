# A scanner fills the table of tracked connections.
start() {
    modprobe nf_conntrack
    nft -f - <<'N'
table inet lab { chain in { type filter hook input priority 0; ct state new accept; }; }
N
    cat /proc/sys/net/netfilter/nf_conntrack_max >$LAB/conntrack-max
    echo 300 >/proc/sys/net/netfilter/nf_conntrack_max
    spawn victim -- python3 -c 'import socket, time
while True:
    for i in range(500):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.bind(("127.0.0.1", 20000 + i))
            try:
                s.sendto(b"x", ("127.0.0.9", 9999))
            except OSError:
                pass
    time.sleep(10)'
    sleep 4
}
stop() {
    unspawn victim
    nft delete table inet lab
    cat $LAB/conntrack-max >/proc/sys/net/netfilter/nf_conntrack_max
    rmmod nf_conntrack_netlink 2>/dev/null
    return 0
}
