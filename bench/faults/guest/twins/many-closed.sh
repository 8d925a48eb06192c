# 1500 connections are in TIME-WAIT, of 28000 ports.
start() {
    spawn server -- python3 -c 'import socket
s = socket.create_server(("127.0.0.1", 8097), backlog=500)
while True:
    c, _ = s.accept()
    c.recv(1)
    c.close()'
    sleep 2
    python3 -c 'import socket
for _ in range(1500):
    s = socket.create_connection(("127.0.0.1", 8097), 5)
    s.shutdown(socket.SHUT_RDWR)
    s.close()'
}
stop() { unspawn server; }
