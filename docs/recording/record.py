#!/usr/bin/env python3
"""Records what the monitor shows while a task blocks the event loop, as docs/recording/blocked.svg.

    cargo build --release --locked --example blocked
    python3 docs/recording/record.py target/release/examples/blocked

Four shells run in terminals of their own: the example, two `nc` that talk to it, and one that talks to its monitor.
What is drawn is what these terminals showed, and when. Needs Linux, nc (netcat-openbsd), and ports 25000 and 25001.
"""

import html
import os
import pty
import re
import signal
import sys
import threading
import time
from pathlib import Path

PATIENCE = 60  # seconds
START = time.monotonic()


class Terminal:
    """A shell, and the lines that its terminal showed, with their times."""

    def __init__(self, title):
        self.title = title
        self.lines = []
        self.shown = ""
        self.changed = threading.Condition()
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # Whoever started us may ignore it.
            os.execvpe("sh", ["sh", "-i"], {**os.environ, "PS1": "$ ", "ENV": ""})
        threading.Thread(target=self.read, daemon=True).start()
        self.wait_for(r"\$ $")

    def read(self):
        while True:
            try:
                piece = os.read(self.terminal, 4096).decode()
            except OSError:  # The shell has ended.
                return
            with self.changed:
                self.shown += piece.replace("\r", "")
                now = time.monotonic() - START
                for line in self.shown.split("\n")[len(self.lines) : -1]:
                    self.lines.append((now, line))
                self.changed.notify_all()

    def type(self, line):
        os.write(self.terminal, f"{line}\n".encode())

    def wait_for(self, pattern):
        """Waits until what is shown, all in all, matches the pattern."""
        with self.changed:
            if not self.changed.wait_for(lambda: re.search(pattern, self.shown), PATIENCE):
                sys.exit(f"{self.title} does not show {pattern}, but:\n{self.shown}")

    def end(self):
        """Ctrl-C, and then the end of input, for the shell."""
        os.write(self.terminal, b"\x03")
        self.wait_for(r"\$ $")
        os.write(self.terminal, b"exit\n")
        os.waitpid(self.pid, 0)


def play(program):
    """What happens. Returns the terminals' titles and lines."""
    global START
    os.environ["PATH"] = f"{Path(program).resolve().parent}:{os.environ['PATH']}"
    titles = ["the program: examples/blocked.rs", "nc 1", "nc 2", "the monitor"]
    server, first, second, monitor = terminals = [Terminal(title) for title in titles]
    START = time.monotonic()

    server.type("blocked")
    server.wait_for("monitor on")
    first.type("nc localhost 25000")
    pause(0.5)
    second.type("nc localhost 25000")
    monitor.type("nc localhost 25001")
    pause(0.5)
    first.type(10)
    first.wait_for(r"fib\(10\) = ")
    pause(0.5)
    second.type(20)
    second.wait_for(r"fib\(20\) = ")

    pause(1)
    first.type(46)
    pause(1)
    second.type(11)
    pause(1)
    monitor.type("ps")
    monitor.wait_for("running")
    second.wait_for(r"fib\(11\) = ")
    pause(1)
    monitor.type("ps")
    pause(1)

    recorded = [(terminal.title, list(terminal.lines)) for terminal in terminals]
    for terminal in reversed(terminals):
        terminal.end()
    return recorded


def pause(seconds):
    """For the audience, and for what is typed to arrive."""
    time.sleep(seconds)


CHAR, LINE, PAD, GAP, TITLE, GUTTER = 7.2, 17, 10, 10, 24, 8
WIDTH = 900

STYLE = """
text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #d5dae3 }
.title { fill: #8b95a7 } .time { fill: #69748a } .typed { fill: #7fd1b9 } .marked { fill: #f2b866 }
g { animation: appear 1ms both }
@keyframes appear { from { visibility: hidden } }
@media (prefers-reduced-motion) { g { animation: none } }
"""


def draw(recorded):
    (server, first, second, monitor) = recorded
    half = (WIDTH - GAP) / 2
    rows = [[(server, WIDTH)], [(first, half), (second, half)], [(monitor, WIDTH)]]
    top, panes = 0, []
    for row in rows:
        height = TITLE + PAD + LINE * max(len(lines) for (_, lines), _ in row)
        left = 0
        for (title, lines), width in row:
            panes.append(pane(title, lines, left, top, width, height))
            left += width + GAP
        top += height + GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" viewBox="0 0 {WIDTH} {top - GAP:g}">\n'
        f"<title>What the monitor shows while a task blocks the event loop</title>\n"
        f"<style>{STYLE}</style>\n{''.join(panes)}</svg>\n"
    )


def pane(title, lines, left, top, width, height):
    drawn = (
        f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="6" fill="#1e2430"/>\n'
        f'<text class="title" x="{left + PAD:g}" y="{top + 17:g}">{html.escape(title)}</text>\n'
    )
    for number, (when, line) in enumerate(lines):
        y = top + TITLE + LINE * number + 13
        x = left + PAD
        kind = "typed" if is_typed(line) else "marked" if is_news(line) else ""
        drawn += (
            f'<g style="animation-delay:{when:.2f}s"><text class="time" x="{x:g}" y="{y:g}">{when:.1f} s</text>'
            f'<text class="{kind}" x="{x + GUTTER * CHAR:g}" y="{y:g}">{html.escape(line)}</text></g>\n'
        )
    return drawn


def is_typed(line):
    return line.startswith("$ ") or re.fullmatch(r"\d+|ps", line)


def is_news(line):
    return " running " in line or "blocked the event loop" in line


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: record.py PATH-OF-THE-EXAMPLE-BLOCKED")
    picture = draw(play(sys.argv[1]))
    Path(__file__).with_name("blocked.svg").write_text(picture)
