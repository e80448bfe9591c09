"""Peak memory of pieces of code, each run in a process of its own."""

import subprocess
import sys

LIMIT_MB = 400  # the stated bound: 200 instances on 3000 x 1500 stay this much above the start

# The peak of the process that runs the tests would be some other test's.
_WATCH = """
import re, threading, time
import torch

def resident_mb():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

def watch():
    while True:
        peak[0] = max(peak[0], resident_mb())
        time.sleep(0.005)

torch.set_num_threads(1)
peak = [0.0]
"""

_BEGIN = """
start, peak[0] = resident_mb(), 0.0
"""

_END = """
time.sleep(0.01)
print(max(peak[0], resident_mb()) - start)
"""


def peaks_mb(setup: str, *works: str) -> list[float]:
    """Peak of each piece of work above its own start, all in one fresh process.

    Args:
        setup: what the pieces share; it should do everything once, for libraries load on first use.
        works: pieces of work.
    """
    watch = "\nthreading.Thread(target=watch, daemon=True).start()\n"
    script = _WATCH + setup + watch + "".join(_BEGIN + work + _END for work in works)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peaks = [float(line) for line in done.stdout.split()]
    assert len(peaks) == len(works)
    return peaks
