"""A run of two processes that is resumed equals the one that was not interrupted."""

import pytest
import torch

from ..marks import needs_deepspeed
from .runs import check_engine, run


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("zero2", marks=needs_deepspeed),
        pytest.param("zero3", marks=[needs_deepspeed, pytest.mark.slow]),
        pytest.param("fsdp2", marks=pytest.mark.slow),
    ],
)
def test_two_processes_go_on_from_a_checkpoint(engine, tmp_path):
    """Step 3 is in the joint phase, after rollouts that are read back."""
    options = {"save_strategy": "steps", "save_steps": 1}
    whole = run("bash", tmp_path, 2, engine, **options)
    check_engine(whole, engine)
    weights, rollouts = whole.weights, whole.rollouts
    resumed = run("bash", tmp_path, 2, engine, **options, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    check_engine(resumed, engine)
    assert torch.equal(resumed.weights, weights)
    assert resumed.rollouts == rollouts
    assert resumed.losses == whole.losses


@pytest.mark.slow
def test_processes_on_cpus_without_an_engine_are_told_so(tmp_path):
    run("bash", tmp_path, 2, "ddp", save_strategy="steps", save_steps=1)
    with pytest.raises(AssertionError, match="cannot load an optimizer's state into several processes on CPUs"):
        run("bash", tmp_path, 2, "ddp", resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
