"""One process or two, whole or sharded: the same rollouts, losses and weights (gloo, on a CPU)."""

import pytest

from ..marks import needs_bitsandbytes, needs_deepspeed, needs_vllm
from .runs import check_engine, check_equal, run, tokens


ON_THE_FLY = "dad-dagger-on-the-fly"


def case(method: str, engine: str, slow: bool = False):
    marks = [needs_deepspeed] if engine.startswith("zero") else []
    marks += [needs_vllm] if "vllm" in method else []
    marks += [needs_bitsandbytes] if method.endswith("qlora") else []
    return pytest.param(method, engine, marks=[*marks, pytest.mark.slow] if slow else marks)


CASES = [
    *(case(method, "ddp") for method in ("bash", "rac", "dad-dagger")),
    *(case(method, "zero1", slow=True) for method in ("bash", "rac", "dad-dagger")),
    *(case(method, "zero2", slow=method != "bash") for method in ("bash", "rac", "dad-dagger")),
    *(case(method, "zero3", slow=method == "rac") for method in ("bash", "rac", "dad-dagger", ON_THE_FLY)),
    *(case(method, "fsdp2", slow=method == "rac") for method in ("bash", "rac", "dad-dagger")),
    *(case("bash-gated", engine, slow=engine != "ddp") for engine in ("ddp", "zero3", "fsdp2")),
    *(case("dad-dagger-gated", engine, slow=engine != "ddp") for engine in ("ddp", "zero3", "fsdp2")),
    *(case("rac-soft", engine, slow=engine != "ddp") for engine in ("ddp", "zero3", "fsdp2")),
    *(case("rac-soft-whole", engine, slow=engine != "zero3") for engine in ("zero3", "fsdp2")),
    case("rac-soft-average", "ddp"),
    *(case("verified", engine, slow=engine != "ddp") for engine in ("ddp", "zero3", "fsdp2")),
    *(case("spin", engine, slow=True) for engine in ("ddp", "zero3", "fsdp2")),
    *(case("scheduled-sampling", engine, slow=engine != "zero3") for engine in ("ddp", "zero3", "fsdp2")),
    case(ON_THE_FLY, "fsdp2", slow=True),
    *(case("bash-vllm", engine, slow=True) for engine in ("ddp", "zero3", "fsdp2")),
    *(case("bash-lora", engine, slow=engine != "fsdp2") for engine in ("ddp", "zero3", "fsdp2")),
    *(case("dad-dagger-lora", engine, slow=True) for engine in ("ddp", "zero3", "fsdp2")),
    *(case("bash-recurrent", engine, slow=True) for engine in ("zero3", "fsdp2")),
    *(case(f"{method}-qlora", engine, slow=True) for method in ("bash", "dad-dagger") for engine in ("ddp", "fsdp2")),
    *(case("bash-vllm-lora", engine, slow=True) for engine in ("zero3", "fsdp2")),
]


@pytest.mark.parametrize(("method", "engine"), CASES)
def test_one_process_or_two(method, engine, single, tmp_path):
    two = run(method, tmp_path, 2, engine)
    check_engine(two, engine)
    assert two.record["teacher_sharded"] == (method == ON_THE_FLY and engine in ("zero3", "fsdp2"))
    # A product with 4-bit weights rounds by the shape of the batch, and Adam takes steps of one size whatever the gradient's.
    check_equal(single(method), two, tolerance=1e-2 if method.endswith("qlora") else 1e-4)


@pytest.mark.parametrize("engine", ["ddp", pytest.param("zero3", marks=[needs_deepspeed, pytest.mark.slow])])
def test_frozen_layers_are_run_once_by_two_processes(engine, tmp_path):
    """Each runs them over rows of its own and trains on all; where the model is spread over them, in every step."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = run("dad-dagger-frozen", tmp_path / "one", 1, cache_trunk=False)
    two = run("dad-dagger-frozen", tmp_path / "two", 2, engine)
    check_engine(two, engine)
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert (two.weights - one.weights).norm() < 1e-4 * one.weights.norm()
    assert tokens(two.rollouts) == tokens(one.rollouts)
    assert one.record["layer_calls"] > 0 and (two.record["layer_calls"] > 0) == (engine == "zero3")
    assert len([*two.folder.glob("trunk-states/*/shard-*")]) == (0 if engine == "zero3" else 4)
