"""Step 6 of docs/tutorial.md: a client with a bug, which a good network hides."""

import socket
import sys

port = int(sys.argv[1]) if len(sys.argv) > 1 else 25000


def ask(server, word):
    server.sendall(word)
    expected = b"Got: " + word
    reply = server.recv(len(expected))
    if reply != expected:
        sys.exit(f"expected {expected}, received {reply}")
    print(reply.decode())


with socket.create_connection(("127.0.0.1", port), timeout=10) as server:
    ask(server, b"hello")
    ask(server, b"is anybody there?")
