"""One process or two: the same rollouts, losses and weights (DDP over gloo, on a CPU)."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from trl_exbias.rollouts.store import RolloutStore


ROOT = Path(__file__).parents[2]


def run(method: str, output_dir: Path, num_processes: int, batch_size: int) -> dict:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    module = ["-m", "tests.distributed.train", method, str(output_dir), str(batch_size)]
    done = subprocess.run(
        [*launch, *module],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((output_dir / "record.json").read_text())


VLLM = pytest.param(
    "bash-vllm",
    marks=[pytest.mark.slow, pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")],
)


@pytest.mark.parametrize("method", ["bash", "rac", "dad-dagger", VLLM])
def test_one_process_or_two(method, tmp_path):
    single = run(method, tmp_path / "one", 1, 8)
    double = run(method, tmp_path / "two", 2, 4)
    assert (single["world_size"], double["world_size"]) == (1, 2)
    assert double["losses"] == pytest.approx(single["losses"], rel=1e-5)
    one, two = (torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("one", "two"))
    assert (one - two).norm() < 1e-4 * one.norm()
    iteration = 2 if method == "dad-dagger" else 1
    rows = [
        sorted(
            RolloutStore(tmp_path / name / "rollouts" / f"iteration-{iteration}").read().to_list(),
            key=lambda row: row["example_id"],
        )
        for name in ("one", "two")
    ]
    assert rows[0] == rows[1], "the same rollouts, token for token"
