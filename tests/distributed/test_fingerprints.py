import os
import subprocess
import sys

import pytest

from .runs import ROOT


@pytest.mark.slow
def test_four_processes_find_the_whole_models_fingerprint():
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "4", "-m", "tests.distributed.fingerprints"]
    done = subprocess.run(
        [sys.executable, "-m", *launch],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
