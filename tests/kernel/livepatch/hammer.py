"""Runs in a guest: reads /proc/cmdline as fast as it can until told to stop, and counts answers.

`hammer.py OUT` writes `{"calls", "seconds", "old", "new", "wrong": [...]}` to OUT on SIGTERM.
"""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

NEW = re.compile(rb" livepatched=(one|two|many)/\d+\n")


def main() -> None:
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    # Each pread(2) from 0 has the kernel make the text anew (seq_file).
    fd = os.open("/proc/cmdline", os.O_RDONLY)
    plain = NEW.sub(b"\n", os.pread(fd, 4096, 0))
    counts = {"old": 0, "new": 0}
    wrong: list[str] = []
    started = time.monotonic()
    while not stop:
        text = os.pread(fd, 4096, 0)
        if text == plain:
            counts["old"] += 1
        elif text.startswith(plain[:-1]) and NEW.fullmatch(text[len(plain) - 1 :]):
            counts["new"] += 1
        else:
            wrong.append(repr(text))
    result = {
        **counts,
        "calls": sum(counts.values()) + len(wrong),
        "seconds": round(time.monotonic() - started, 1),
        "wrong": wrong[:5],
    }
    with Path(sys.argv[1]).open("w") as f:
        json.dump(result, f)


main()
