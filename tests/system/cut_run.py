"""Sums for some seconds over links that are cut meanwhile; test_links_cut.py starts it. Prints a digest of all results.

    cut_run.py FOLDER SECONDS       FOLDER/started is made with the first sum
"""

import hashlib
import sys
import time
from pathlib import Path

import numpy as np

import gtcbmuf
from gtcbmuf import runtime

gtcbmuf.init()
started, seconds = Path(sys.argv[1]) / "started", float(sys.argv[2])
digest, begin = hashlib.sha256(), time.monotonic()
step = 0
while True:
    array = np.random.default_rng([runtime.rank(), step]).standard_normal(100_000).astype(np.float32)
    runtime.world().post_allreduce(array).wait()
    if step < 50:  # how many steps there are depends on the clock
        digest.update(array.tobytes())
    flag = np.array([time.monotonic() - begin > seconds], np.float32)
    runtime.world().post_broadcast(flag).wait()
    started.touch()
    step += 1
    if flag[0] and step >= 50:
        break
print(f"rank {runtime.rank()} {digest.hexdigest()} of {step} steps\n", end="", flush=True)
