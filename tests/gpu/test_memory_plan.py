"""The peaks that `exbias check` plans against those of a run: an SFT step, rollouts, a joint step, of random models."""

import pytest
import torch

from .device import on_gpu_or_cpu
from .models import mid_config
from .planned_run import Case, measured_and_planned


TOLERANCE = 0.15
MIB = 1 << 20
# On a CPU TRL's head takes a buffer of 32768 logits for each position: a small vocabulary leaves more of the rest to be seen.
SIZE = {"vocab_size": on_gpu_or_cpu(32768, 512)}
DEEP = {**SIZE, "num_hidden_layers": on_gpu_or_cpu(8, 3)}
CASES = {
    "float32": Case(mid_config(**SIZE), torch.float32, False),
    "mixed precision, accumulating": Case(
        mid_config(**SIZE), torch.float32, True, options={"gradient_accumulation_steps": 2}
    ),
    "bf16 weights, checkpointing": Case(mid_config(**DEEP), torch.bfloat16, True, checkpointing=True),
    "LoRA, bf16, checkpointing": Case(mid_config(**DEEP), torch.bfloat16, True, lora_rank=16, checkpointing=True),
    "LoRA, bf16": Case(mid_config("gemma2", **SIZE), torch.bfloat16, True, lora_rank=16),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.quick_on_cpu] * (n == "float32")) for n in CASES])
def test_planned_peaks_are_those_of_the_run(name, tmp_path, record):
    measured, planned = measured_and_planned(CASES[name], tmp_path)
    assert measured.keys() == planned.keys() == {"SFT", "rollouts 1", "iteration 1"}
    table = []
    for phase, found in measured.items():
        plan = planned[phase]
        parts = ", ".join(f"{k} {v / MIB:.1f}" for k, v in plan.items() if isinstance(v, int) and v)
        table.append(
            f"{phase}: planned / measured {plan['total'] / found:.2f}; measured {found / MIB:.1f} MiB; planned {parts} "
            f"({plan['when']})"
        )
    print(*table, sep="\n")
    record(peaks=table)
    for phase, found in measured.items():
        assert planned[phase]["total"] == pytest.approx(found, rel=TOLERANCE), "\n".join(table)
