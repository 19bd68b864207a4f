"""The peaks that `exbias check` plans against those of a run: an SFT step, rollouts, a joint step, of random models."""

from dataclasses import dataclass, field

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PretrainedConfig, TrainerCallback
from trl import get_peft_config

from examples.benchmarks.gpu.planned import model_config, planned_peaks
from examples.benchmarks.gpu.random_policy import numbered_tokenizer
from trl_exbias import BASHConfig, BASHTrainer
from trl_exbias.planning.phases import Layout

from ..trainers.runs import OWN_DEFAULTS
from .device import DEVICE, ON_CUDA, on_gpu_or_cpu
from .memory import Meter, metered
from .models import mid_config


# Prompt and response; the rows of a batch differ in length by one token, so that there is a mask.
PROMPT, RESPONSE = on_gpu_or_cpu((384, 384), (48, 48))
ROWS = on_gpu_or_cpu(8, 4)
TOLERANCE = 0.15
MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """A model and how it is trained."""

    config: PretrainedConfig
    dtype: str
    bf16: bool
    lora_rank: int | None = None
    checkpointing: bool = False
    options: dict = field(default_factory=dict)


CASES = {
    "float32": Case(mid_config(), "float32", False),
    "mixed precision, accumulating": Case(mid_config(), "float32", True, options={"gradient_accumulation_steps": 2}),
    "bf16 weights, checkpointing": Case(mid_config(num_hidden_layers=8), "bfloat16", True, checkpointing=True),
    "LoRA, bf16, checkpointing": Case(mid_config(num_hidden_layers=8), "bfloat16", True, 16, checkpointing=True),
    "LoRA, bf16": Case(mid_config(), "bfloat16", True, 16),
}


class Peaks(TrainerCallback):
    """The peak of each phase. A phase's own begins with its second step: the first one makes the optimizer's states."""

    def __init__(self, meter: Meter, steps: int):
        self.meter, self.steps = meter, steps
        self.bytes: dict[str, int] = {}

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.steps:
            self.bytes["rollouts 1"] = self.meter.peak()
        self.meter.reset_peak()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step > 1:
            name = "SFT" if state.global_step <= self.steps else "iteration 1"
            self.bytes[name] = max(self.meter.peak(), self.bytes.get(name, 0))
        self.meter.reset_peak()


def rows(vocab_size: int, number: int) -> Dataset:
    ids = torch.randint(3, vocab_size, (number, PROMPT + RESPONSE), generator=torch.Generator().manual_seed(0)).tolist()
    cut = [row[: len(row) - i % 2] for i, row in enumerate(ids)]
    return Dataset.from_list([{"input_ids": row, "labels": [-100] * PROMPT + row[PROMPT:]} for row in cut])


def measured_and_planned(case: Case, folder) -> tuple[dict[str, int], dict[str, dict]]:
    """Bytes of each phase's peak, and what was planned for it by component."""
    steps = 2
    accumulated = case.options.get("gradient_accumulation_steps", 1)
    args = BASHConfig(
        str(folder),
        **OWN_DEFAULTS,
        beta=0.3,
        use_cpu=not ON_CUDA,
        bf16=case.bf16,
        gradient_checkpointing=case.checkpointing,
        per_device_train_batch_size=ROWS,
        rollout_batch_tokens=ROWS * (PROMPT + RESPONSE),
        max_length=None,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        **case.options,
    )
    model_args = model_config("random", case.lora_rank, case.dtype)
    with metered() as meter:
        outside = meter.live()
        with torch.device(DEVICE):
            model = AutoModelForCausalLM.from_config(
                case.config, dtype=getattr(torch, case.dtype), attn_implementation="sdpa"
            )
        peaks = Peaks(meter, steps)
        trainer = BASHTrainer(
            model=model,
            args=args,
            train_dataset=rows(case.config.vocab_size, ROWS * accumulated * steps),
            processing_class=numbered_tokenizer(case.config.vocab_size),
            peft_config=get_peft_config(model_args),
            callbacks=[peaks],
        )
        trainer.train()
    assert trainer.data_collator.shared
    sft = Layout(ROWS, PROMPT + RESPONSE, ROWS * RESPONSE)
    joint = Layout(ROWS, PROMPT + 2 * RESPONSE, 2 * ROWS * RESPONSE)
    planned = planned_peaks(case.config, args, model_args, sft, joint, on_cpu=not ON_CUDA)
    return {name: found - outside for name, found in peaks.bytes.items()}, planned


@pytest.mark.parametrize("name", CASES)
def test_planned_peaks_are_those_of_the_run(name, tmp_path, record):
    measured, planned = measured_and_planned(CASES[name], tmp_path)
    table = []
    for phase, found in measured.items():
        plan = planned[phase]
        parts = ", ".join(f"{key} {value / MIB:.1f}" for key, value in plan.items() if isinstance(value, int))
        table.append(f"{phase}: measured {found / MIB:.1f} MiB, planned {parts} ({plan['when']})")
    print(*table, sep="\n")
    record(peaks=table)
    for phase, found in measured.items():
        assert planned[phase]["total"] == pytest.approx(found, rel=TOLERANCE), "\n".join(table)
