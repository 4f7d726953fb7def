"""An echo server on asyncio's socket calls: `python3 echo.py asyncio` or `python3 echo.py uvloop`."""

import asyncio
import socket
import sys


async def echo_server(server, loop):
    while True:
        client, _ = await loop.sock_accept(server)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop.create_task(echo_handler(client, loop))


async def echo_handler(client, loop):
    with client:
        while True:
            data = await loop.sock_recv(client, 10000)
            if not data:
                break
            await loop.sock_sendall(client, b"Got: " + data)


def new_loop(name):
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


def main():
    loop = new_loop(sys.argv[1])
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.bind(("127.0.0.1", 0))
    # As many as asyncio's own `create_server` lets wait.
    server.listen(100)
    server.setblocking(False)
    print("listening on 127.0.0.1:%d" % server.getsockname()[1], flush=True)
    loop.run_until_complete(echo_server(server, loop))


main()
