"""A process that leaves has done what Python does at exit, and is not aborted by a collective that has just ended."""

import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[2]
ORDERLY = """
import atexit, threading, time
from concurrent.futures import ThreadPoolExecutor
from trl_exbias.core.leaving import leave

atexit.register(print, "atexit", end=" ")
threading.Thread(target=lambda: (time.sleep(0.3), print("thread", end=" "))).start()
ThreadPoolExecutor(1).submit(lambda: (time.sleep(0.6), print("executor", end=" ")))
leave(3)
"""

# A thread of the second process is in a collective that ends, and asks for the interpreter, while modules would be taken apart.
COLLECTIVE = """
import contextlib, threading, time
import torch.distributed as dist
import torch
from trl_exbias.core.leaving import leave

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(2)

slow = Slow()
dist.init_process_group("gloo")
dist.barrier()
if dist.get_rank() == 0:
    time.sleep(1)
    with contextlib.suppress(RuntimeError):  # the other has left
        dist.all_reduce(torch.zeros(3))
else:
    threading.Thread(target=dist.all_reduce, args=(torch.zeros(3),), daemon=True).start()
    time.sleep(0.2)
leave(0)
"""


def test_threads_and_exit_functions_end_before_the_process():
    done = subprocess.run([sys.executable, "-c", ORDERLY], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "thread executor atexit ", "")


def test_a_collective_that_ends_late_aborts_nothing(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(COLLECTIVE)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
