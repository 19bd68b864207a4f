"""What `exbias check` plans for batches of given shapes, to be compared with what is allocated."""

import copy
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from trl import ModelConfig, get_peft_config

from trl_exbias.core.branches import BranchedExample
from trl_exbias.planning.estimate import estimate
from trl_exbias.planning.phases import Layout, PlannedPhase
from trl_exbias.planning.placement import Placement
from trl_exbias.settings.findings import Findings


def model_config(path: str | Path, lora_rank: int | None, dtype: str) -> ModelConfig:
    """TRL's own arguments of a model with or without LoRA on every linear layer."""
    lora = {}
    if lora_rank is not None:
        lora = {"use_peft": True, "lora_r": lora_rank, "lora_alpha": 2 * lora_rank, "lora_dropout": 0.0}
        lora["lora_target_modules"] = ["all-linear"]
    return ModelConfig(model_name_or_path=str(path), dtype=dtype, **lora)


def layout_of(examples: list[BranchedExample]) -> Layout:
    """The shared layout of some examples."""
    lengths = [len(e.context_ids) + sum(len(branch.input_ids) for branch in e.branches) for e in examples]
    scored = sum(label != -100 for e in examples for branch in e.branches for label in branch.labels)
    return Layout(len(examples), max(lengths), scored)


def planned_peaks(
    config: PretrainedConfig, args: Any, model_args: ModelConfig, sft: Layout, joint: Layout, on_cpu: bool
) -> dict[str, dict[str, int]]:
    """
    Bytes by component at the planned peak of `"SFT"`, `"rollouts 1"` and `"iteration 1"`.

    Raises:
        RuntimeError: if the model cannot be planned for.
    """
    findings = Findings()
    placement = Placement(cpu=on_cpu, mixed_precision="bf16" if args.bf16 else "no")
    phases = [_phase("SFT", 0, sft, 0), _phase("iteration 1", 1, joint, None)]
    # Planning puts a stand-in for attention into the configuration.
    config = copy.deepcopy(config)
    found = estimate(findings, config, (), args, model_args, get_peft_config(model_args), placement, phases)
    if found is None or findings.found:
        raise RuntimeError("; ".join(finding.message for finding in findings.found))
    return {
        phase.name: {"when": phase.peak.name, "total": phase.peak.total, **phase.peak.parts} for phase in found.phases
    }


def _phase(name: str, iteration: int, layout: Layout, rollout_rows: int | None) -> PlannedPhase:
    return PlannedPhase(name, iteration, None, 1, None, None, rollout_rows, None, None, None, layout)
