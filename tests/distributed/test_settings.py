"""What is set to save memory or time under an engine changes nothing else, or only the precision."""

import pytest

from ..marks import needs_deepspeed
from .runs import check_engine, check_equal, run


pytestmark = pytest.mark.slow
REENTRANT = pytest.mark.parametrize("reentrant", [True, False])


@REENTRANT
@pytest.mark.parametrize("method", ["bash", "dad-dagger", "bash-lora"])
@pytest.mark.parametrize("engine", ["ddp", pytest.param("zero3", marks=needs_deepspeed), "fsdp2"])
def test_gradient_checkpointing(method, engine, reentrant, single, tmp_path):
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    if engine == "ddp" and reentrant:
        options["ddp_find_unused_parameters"] = False  # asked for by name: see `unsupported.py`
    two = run(method, tmp_path, 2, engine, **options)
    check_engine(two, engine)
    check_equal(single(method), two)
    # Each layer is run a second time for the backward pass.
    assert two.record["layer_calls"] == 2 * single(method).record["layer_calls"]


@needs_deepspeed
def test_zero3_with_weights_and_optimizer_in_cpu_memory(single, tmp_path):
    """DeepSpeed's own Adam, which it compiles for this."""
    two = run("dad-dagger", tmp_path, 2, "zero3-offload")
    check_engine(two, "zero3")
    assert two.record["optimizer"] == "DeepSpeedCPUAdam"
    check_equal(single("dad-dagger"), two)


@pytest.mark.parametrize(
    "options",
    [
        # The first process loads; the others have none of the policy until they get their shards, and all of the teacher.
        {"cpu_ram_efficient_loading": True},
        {"activation_checkpointing": True},
        {"reshard_after_forward": False},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_fsdp2(options, single, tmp_path):
    two = run("dad-dagger", tmp_path, 2, "fsdp2", fsdp_config=options)
    check_engine(two, "fsdp2")
    check_equal(single("dad-dagger"), two)


@pytest.mark.parametrize("method", ["bash", "dad-dagger", "bash-lora", "spin"])
@pytest.mark.parametrize("engine", [pytest.param("zero3", marks=needs_deepspeed), "fsdp2"])
def test_mixed_precision(method, engine, single, tmp_path):
    two = run(method, tmp_path, 2, engine, bf16=True)
    check_engine(two, engine)
    # What is neither a weight nor an activation keeps its own dtype: log-probabilities in eight bits would be another loss.
    assert two.record["float_input_dtypes"] == ["torch.float32"]
    # Eight bits of precision; the rollouts are others where two tokens are about as probable.
    assert two.losses == pytest.approx(single(method).losses, rel=2e-2)


@pytest.mark.parametrize("engine", ["ddp", pytest.param("zero2", marks=needs_deepspeed), "fsdp2"])
def test_torch_compile(engine, single, tmp_path):
    two = run("bash", tmp_path, 2, engine, torch_compile=True)
    check_engine(two, engine)
    assert two.record["compiled_graphs"] > 0
    assert two.losses == pytest.approx(single("bash").losses, rel=1e-4)
    assert two.rollouts == single("bash").rollouts
