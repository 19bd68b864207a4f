"""Two nodes without a file system in common: rollouts and soft labels go over the process group, and all is the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..ports import free_port
from ..tiny import tiny_model
from .runs import ROOT, Run, check_equal
from .train import BASE, TEACHER, base_model


@pytest.mark.parametrize("method", ["bash", pytest.param("dad-dagger", marks=pytest.mark.slow)])
def test_nodes_that_share_no_folder(method, single, tmp_path):
    port, nodes = free_port(), []
    folders = [tmp_path / f"node-{rank}" for rank in range(2)]
    for rank, folder in enumerate(folders):
        base_model(method).save_pretrained(folder / BASE)
        tiny_model(seed=7).save_pretrained(folder / TEACHER)
        launch = ["-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(rank), "--nproc_per_node", "1"]
        launch += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
        nodes.append(
            subprocess.Popen(
                [sys.executable, *launch, "-m", "tests.distributed.train", method, str(folder), "4", "ddp", "{}"],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [node.communicate(timeout=600)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(text[-3000:] for text in said)
    first, second = (Run(folder, json.loads((folders[0] / "record.json").read_text())) for folder in folders)
    assert first.record["world_size"] == 2
    check_equal(single(method), first)
    assert second.rollouts == first.rollouts, "what the other node rolled out came over"
    assert kept(first.folder) == kept(second.folder)


def kept(folder: Path) -> dict[str, bytes]:
    """What is made of rollouts and soft labels on a node."""
    files = [path for name in ("rollouts", "soft-labels") for path in sorted((folder / name).rglob("*.*"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()}
