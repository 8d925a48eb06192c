# netem loses every tenth packet on the loopback.
start() {
    tc qdisc add dev lo root netem loss 10%
    spawn victim -- python3 -c 'import socket, threading
server = socket.create_server(("127.0.0.1", 8098))
def take():
    c, _ = server.accept()
    while c.recv(65536):
        pass
threading.Thread(target=take, daemon=True).start()
s = socket.create_connection(("127.0.0.1", 8098))
while True:
    s.sendall(bytes(65536))'
    sleep 4
}
stop() {
    tc qdisc del dev lo root 2>/dev/null
    unspawn victim
}
