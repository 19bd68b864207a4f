"""What would train with another engine than was asked for, or wrongly, is refused by name."""

import pytest

from ..marks import needs_deepspeed
from .runs import run


@pytest.mark.parametrize(
    ("method", "engine", "options", "message"),
    [
        pytest.param("bash", "fsdp2-on-cpus", {}, "FSDP was asked for but is not in use"),
        pytest.param(
            "bash-lora",
            "fsdp2",
            {"modules_to_save": ["lm_head"]},
            "An adapter that trains the LM head .* is not supported under FSDP2",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "bash-lora",
            "ddp",
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "Reentrant gradient checkpointing .* set `ddp_find_unused_parameters=False`",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "dad-dagger",
            "ddp",
            {"torch_compile": True},
            "`torch_compile` is not supported together with soft labels",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_processes_are_refused(method, engine, options, message, tmp_path):
    with pytest.raises(AssertionError, match=f"UsageError: {message}"):
        run(method, tmp_path, 2, engine, **options)


@pytest.mark.slow
def test_fsdp1(tmp_path, monkeypatch):
    """What `accelerate launch --use_fsdp` sets where nobody says which one."""
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1", "FSDP_SYNC_MODULE_STATES": "false"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AssertionError, match="UsageError: FSDP1 is not supported"):
        run("bash", tmp_path, 2, "fsdp2", fsdp=None, fsdp_config=None)


@pytest.mark.slow
@needs_deepspeed
def test_deepspeed_that_the_launcher_left_out(tmp_path, monkeypatch):
    """What `accelerate launch --cpu` sets."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(AssertionError, match="UsageError: DeepSpeed was asked for but is not in use"):
        run("bash", tmp_path, 1, "zero2")
