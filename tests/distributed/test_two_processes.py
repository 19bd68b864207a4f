"""One process or two, whole or partitioned: the same rollouts, losses and weights (gloo, on a CPU)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trl_exbias.rollouts.store import RolloutStore

from ..marks import needs_deepspeed, needs_vllm


ROOT = Path(__file__).parents[2]


def run(method: str, output_dir: Path, num_processes: int, batch_size: int, stage: int = 0) -> dict:
    if stage:
        # `--cpu` would quietly leave DeepSpeed out.
        launch = ["accelerate.commands.launch", "--use_deepspeed", "--zero_stage", str(stage)]
        launch += ["--num_processes", str(num_processes), "--main_process_port", "0"]
    else:
        launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    module = ["-m", "tests.distributed.train", method, str(output_dir), str(batch_size), str(stage)]
    done = subprocess.run(
        [sys.executable, "-m", *launch, *module],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((output_dir / "record.json").read_text())


def final_weights(output_dir: Path) -> torch.Tensor:
    weights = load_file(output_dir / "model" / "model.safetensors")
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


def last_rollouts(output_dir: Path) -> list[dict]:
    folder = max((output_dir / "rollouts").iterdir())
    return sorted(RolloutStore(folder).read().to_list(), key=lambda row: row["example_id"])


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The run of each method in one process, made once."""
    made = {}

    def of(method: str):
        if method not in made:
            folder = tmp_path_factory.mktemp(method)
            made[method] = run(method, folder, 1, 8), folder
        return made[method]

    return of


CASES = [
    *((method, 0) for method in ("bash", "rac", "dad-dagger")),
    pytest.param("bash-vllm", 0, marks=[needs_vllm, pytest.mark.slow]),
    pytest.param("bash-vllm", 3, marks=[needs_vllm, needs_deepspeed, pytest.mark.slow]),
    *(pytest.param(method, 1, marks=[needs_deepspeed, pytest.mark.slow]) for method in ("bash", "rac", "dad-dagger")),
    *(pytest.param(method, 2, marks=[needs_deepspeed, pytest.mark.slow]) for method in ("rac", "dad-dagger")),
    pytest.param("bash", 2, marks=needs_deepspeed),
    *(
        pytest.param(method, 3, marks=needs_deepspeed)
        for method in ("bash", "rac", "dad-dagger", "dad-dagger-on-the-fly")
    ),
]


@pytest.mark.parametrize(("method", "stage"), CASES)
def test_one_process_or_two(method, stage, single, tmp_path):
    one, folder = single(method)
    two = run(method, tmp_path, 2, 4, stage)
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert two["engine"] == ("DeepSpeedEngine" if stage else "DistributedDataParallel")
    assert two["sharded"] == (stage == 3)
    assert two["teacher_sharded"] == (method == "dad-dagger-on-the-fly" and stage == 3)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    difference = (final_weights(folder) - final_weights(tmp_path)).norm()
    assert difference < 1e-4 * final_weights(folder).norm()
    assert last_rollouts(folder) == last_rollouts(tmp_path), "the same rollouts, token for token"
