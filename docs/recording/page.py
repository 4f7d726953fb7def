#!/usr/bin/env python3
"""Takes a picture of the monitor's page while a task blocks the event loop, as docs/recording/monitor.png.

    cargo build --release --locked --example blocked
    python3 docs/recording/page.py target/release/examples/blocked

Needs chromium.
"""

import base64
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PICTURE = Path(__file__).with_name("monitor.png")
SESSION = {}


def call(browser, method, **params):
    """Asks the browser for something, and returns its answer."""
    browser.stdin.write(json.dumps({"id": 1, "method": method, "params": params} | SESSION).encode() + b"\0")
    browser.stdin.flush()
    while True:
        answer = bytearray()
        while (byte := browser.stdout.read(1)) != b"\0":
            assert byte, "the browser has ended"
            answer += byte
        answer = json.loads(answer)
        if answer.get("id") == 1:
            return answer["result"]


example = subprocess.Popen(
    [sys.argv[1], "127.0.0.1:0", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
)
try:
    listening, monitor = (re.search(r"[\d.]+:(\d+)", example.stdout.readline()) for _ in range(2))
    clients = [socket.create_connection(("127.0.0.1", int(listening[1]))) for _ in range(4)]
    for client in clients[1:]:
        client.sendall(b"20\n")
        client.recv(100)
    clients[0].sendall(b"60\n")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The browser reads from descriptor 3 and writes to 4.
        browser = subprocess.Popen(
            ["sh", "-c", "exec chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage "
             f"--hide-scrollbars --window-size=1000,530 --user-data-dir={profile} --remote-debugging-pipe "
             "3<&0 4>&1 >/dev/null 2>&1"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        try:
            target = call(browser, "Target.createTarget", url=f"http://{monitor[0]}/")["targetId"]
            SESSION["sessionId"] = call(browser, "Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            time.sleep(5)  # several looks of the page
            picture = call(browser, "Page.captureScreenshot", format="png")["data"]
            PICTURE.write_bytes(base64.b64decode(picture))
        finally:
            browser.kill()
            browser.wait()
finally:
    example.kill()
size = PICTURE.stat().st_size
print(f"{PICTURE}: {size} bytes")
assert size < 60_000, "too large for the README"
