"""Step 6 of docs/tutorial.md: the client without its bug."""

import socket
import sys

port = int(sys.argv[1]) if len(sys.argv) > 1 else 25000


def ask(server, word):
    server.sendall(word)
    expected = b"Got: " + word
    reply = receive(server, len(expected))
    if reply != expected:
        sys.exit(f"expected {expected}, received {reply}")
    print(reply.decode())


def receive(server, length):
    received = b""
    while len(received) < length:
        piece = server.recv(length - len(received))
        if not piece:
            break
        received += piece
    return received


with socket.create_connection(("127.0.0.1", port), timeout=10) as server:
    ask(server, b"hello")
    ask(server, b"is anybody there?")
