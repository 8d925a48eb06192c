# A client opens a connection for each request, until no port is left.
start() {
    cat /proc/sys/net/ipv4/ip_local_port_range >$LAB/ports
    cat /proc/sys/net/ipv4/tcp_tw_reuse >$LAB/reuse
    echo 0 >/proc/sys/net/ipv4/tcp_tw_reuse
    echo 20000 20399 >/proc/sys/net/ipv4/ip_local_port_range
    spawn server -- python3 -c 'import socket
s = socket.create_server(("127.0.0.1", 8099), backlog=500)
while True:
    c, _ = s.accept()
    c.recv(1)
    c.close()'
    sleep 2
    spawn victim -- python3 -c 'import socket, time
while True:
    try:
        s = socket.create_connection(("127.0.0.1", 8099), 5)
        s.shutdown(socket.SHUT_RDWR)
        s.close()
    except OSError:
        time.sleep(5)'
    sleep 5
}
stop() {
    unspawn victim server
    cat $LAB/ports >/proc/sys/net/ipv4/ip_local_port_range
    cat $LAB/reuse >/proc/sys/net/ipv4/tcp_tw_reuse
}
