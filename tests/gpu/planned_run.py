"""A BASH run of a random model whose memory is metered, phase by phase, and what `exbias check` plans for it."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedModel, TrainerCallback
from trl import get_peft_config

from examples.benchmarks.gpu.planned import model_config, planned_peaks
from examples.benchmarks.gpu.random_policy import numbered_tokenizer, random_policy
from trl_exbias import BASHConfig, BASHTrainer
from trl_exbias.planning.phases import Layout
from trl_exbias.rollouts import SamplingOptions, TransformersEngine

from ..loop.runs import OWN_DEFAULTS
from .device import DEVICE, ON_CUDA, on_gpu_or_cpu
from .memory import Meter, metered


# Tokens of a prompt and a response. Every other row is a token shorter, so that there is a mask.
PROMPT, RESPONSE = on_gpu_or_cpu((640, 128), (80, 32))
#: Rows of a micro-batch, and in all.
ROWS, ALL_ROWS = on_gpu_or_cpu((8, 64), (4, 16))
#: One rollout batch: a full one, and some rows are left.
ROLLOUT_TOKENS = 3 * ALL_ROWS * (PROMPT + RESPONSE) // 4


@dataclass(frozen=True)
class Case:
    """A model and how it is trained."""

    config: PretrainedConfig
    dtype: torch.dtype
    bf16: bool
    lora_rank: int | None = None
    checkpointing: bool = False
    options: dict = field(default_factory=dict)


class Peaks(TrainerCallback):
    """The peak of each phase. The first step makes the optimizer's states and is left out."""

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


def rows_of(policy: PreTrainedModel) -> Dataset:
    """Random prompts and the policy's own most probable responses, so that few drawn tokens differ, as after training."""
    prompts = torch.randint(3, policy.config.vocab_size, (ALL_ROWS, PROMPT), generator=torch.Generator().manual_seed(0))
    greedy = SamplingOptions(temperature=0.0, max_new_tokens=RESPONSE)
    responses = TransformersEngine(policy, 1).sample(prompts.tolist(), greedy)
    cut = [response[: RESPONSE - i % 2] for i, response in enumerate(responses)]
    return Dataset.from_list(
        [
            {"input_ids": prompt + response, "labels": [-100] * PROMPT + response}
            for prompt, response in zip(prompts.tolist(), cut, strict=True)
        ]
    )


def measured_and_planned(case: Case, folder: Path) -> tuple[dict[str, int], dict[str, dict]]:
    """Bytes of each phase's peak in a run, and what is planned for it by component."""
    args = BASHConfig(
        str(folder),
        **OWN_DEFAULTS,
        beta=0.3,
        learning_rate=1e-6,
        use_cpu=not ON_CUDA,
        bf16=case.bf16,
        gradient_checkpointing=case.checkpointing,
        per_device_train_batch_size=ROWS,
        rollout_batch_tokens=ROLLOUT_TOKENS,
        max_length=None,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **case.options,
    )
    model_args = model_config("random", case.lora_rank, str(case.dtype).removeprefix("torch."))
    steps = ALL_ROWS // (ROWS * args.gradient_accumulation_steps)
    with metered() as meter:
        outside = meter.live()
        policy = random_policy(case.config, case.dtype, entropy=0.1).to(DEVICE)
        peaks = Peaks(meter, steps)
        trainer = BASHTrainer(
            model=policy,
            args=args,
            train_dataset=rows_of(policy),
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
