"""What two processes at once cost, and more threads than cores: smelt beside itself.

    python tools/peers/together.py target/release/smelt models/minilm 1x128

A second of one process with two threads, of two of them at once, and of one with four threads, in turn, six times; medians in
milliseconds, and how many times as long as one alone.
"""
import json
import statistics
import subprocess
import sys
import threading
import time


def start(threads):
    p = subprocess.Popen([SMELT, "bench", "--worker", "--model", MODEL, "--threads", str(threads), SHAPE],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    p.stdout.readline()  # it is ready
    return p


def second(p, times):
    found, end = [], time.time() + 1
    while time.time() < end:
        p.stdin.write("run\n")
        p.stdin.flush()
        found.append(json.loads(p.stdout.readline())["ms"])
    times += found[len(found) // 5:]  # cores that were idle take a moment


SMELT, MODEL, SHAPE = sys.argv[1:]
one, other, four = start(2), start(2), start(4)
alone, together, many = [], [], []
for _ in range(6):
    second(one, alone)
    both = [threading.Thread(target=second, args=(p, together)) for p in (one, other)]
    for t in both:
        t.start()
    for t in both:
        t.join()
    second(four, many)
base = statistics.median(alone)
print(f"{SHAPE}: alone {base:.2f} ms")
for name, times in (("two processes", together), ("four threads", many)):
    print(f"  {name} {statistics.median(times):.2f} ms, {statistics.median(times) / base:.2f} times as long")
