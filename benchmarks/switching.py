"""What Python's switch interval costs a thread that launches work beside one in plain Python.

A launch lets go of the interpreter's lock for some microseconds. ``usleep``, called through
ctypes, stands in for it: it lets go of the lock, too, and needs no device.

    python -m medclipsam.benchmarks.switching
"""

import ctypes
import json
import sys
import threading
import time

LAUNCHES = 450  # of one forward of a ViT-B/16 in 16 bits
INTERVALS = (5e-3, 1e-3, 5e-4, 1e-4, 5e-5)  # seconds; the first is Python's own
REPEATS = 5


def launch_all() -> float:
    """Seconds of ``LAUNCHES`` calls that let go of the lock."""
    library = ctypes.CDLL(None)
    start = time.perf_counter()
    for _ in range(LAUNCHES):
        library.usleep(1)
    return time.perf_counter() - start


def count(seconds: float) -> int:
    """Rounds of a loop in plain Python."""
    rounds, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        rounds += 1
    return rounds


def beside(interval: float) -> float:
    """Seconds of ``launch_all`` beside a thread in plain Python."""
    sys.setswitchinterval(interval)
    ended = threading.Event()

    def compute() -> None:
        while not ended.is_set():
            count(1e-3)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        return min(launch_all() for _ in range(REPEATS))
    finally:
        ended.set()
        thread.join()


def shared(interval: float) -> int:
    """Rounds of two threads in plain Python that share the lock for a second."""
    sys.setswitchinterval(interval)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(count(1.0))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(found)


def main() -> None:
    """Print a table and, last, one line of JSON."""
    before = sys.getswitchinterval()
    alone = min(launch_all() for _ in range(REPEATS))
    print(f"{LAUNCHES} launches alone: {alone * 1e3:.1f} ms\n")
    print("| switch interval | launches beside a Python thread | rounds of two Python threads |")
    print("| ---: | ---: | ---: |")
    rows = []
    for interval in INTERVALS:
        row = {"interval": interval, "seconds": beside(interval), "rounds": shared(interval)}
        rows.append(row)
        print(f"| {interval * 1e3:g} ms | {row['seconds'] * 1e3:.0f} ms | {row['rounds']:.3g} |")
    sys.setswitchinterval(before)
    print(json.dumps({"launches": LAUNCHES, "alone": alone, "intervals": rows}))


if __name__ == "__main__":
    main()
