"""A device's memory in every phase of a run, put together from the model, the placement and the phases."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

from ..core.frozen_trunk import find_trunk
from ..core.modeling import base_causal_lm
from ..settings.findings import Findings
from .activations import Activations, count_activations
from .lm_head import HeadMemory, distillation_head, fused_head
from .memory import (
    Moment,
    Standing,
    casts_model,
    compute_dtype,
    peak,
    precision,
    standing,
    training_moments,
)
from .model import ModelFacts, is_recurrent, meta_model, model_facts
from .phases import Layout, PlannedPhase
from .placement import Placement
from .rollout_memory import rollout_moments, teacher_moment


@dataclass(frozen=True)
class PhaseMemory:
    """The moment of a phase in which most stands in a device's memory."""

    name: str
    peak: Moment


@dataclass(frozen=True)
class Estimate:
    """
    Args:
        facts ([`ModelFacts`]): The model's.
        teacher ([`ModelFacts`], *optional*): The teacher's.
        phases (`list[PhaseMemory]`): In the order in which they come; empty where the batches' shapes are not known.
        state_bytes (`int`): That are kept of each token where frozen layers are run once; 0 where they are run in every step.
    """

    facts: ModelFacts
    teacher: ModelFacts | None
    phases: list[PhaseMemory]
    state_bytes: int = 0

    @property
    def peak(self) -> PhaseMemory:
        return max(self.phases, key=lambda phase: phase.peak.total)


def shares_context(attn_implementation: str | None, args: Any, config: PretrainedConfig | None) -> bool:
    """Whether branches share the encoding of their context, as far as settings and the model's configuration say."""
    takes_masks = attn_implementation in (None, "sdpa", "eager") and not is_recurrent(config)
    return takes_masks and not args.neftune_noise_alpha


def estimate(
    findings: Findings,
    config: PretrainedConfig,
    teacher_configs: Sequence[PretrainedConfig],
    args: Any,
    model_args: Any,
    peft_config: Any,
    placement: Placement,
    phases: list[PlannedPhase],
    device_bytes: int | None = None,
    reads_for_labels: bool = False,
) -> Estimate | None:
    """
    Args:
        device_bytes (`int`, *optional*): Memory of one device.
        reads_for_labels (`bool`): Whether the policy reads what it has drawn once more, in batches of its own.

    Returns:
        [`Estimate`]: `None`, with a finding, where the model cannot be laid out.
    """
    loaded_in = _dtype(model_args.dtype, config)
    packing = None
    if model_args.load_in_4bit:
        packing = "4bit-nested" if model_args.use_bnb_nested_quant else "4bit"
    elif model_args.load_in_8bit:
        packing = "8bit"
    computes_in = compute_dtype(placement, loaded_in)
    try:
        model = meta_model(
            config,
            loaded_in,
            placement,
            peft_config,
            getattr(args, "trainable_modules", None),
            model_args.attn_implementation,
            quantized=packing is not None,
            trust_remote_code=bool(args.trust_remote_code),
        )
    except ValueError as error:
        findings.error("model", str(error))
        return None
    facts = model_facts(model, computes_in, packing)
    teacher = _largest_teacher(args, teacher_configs)
    try:
        stand = standing(facts, placement, args.optim)
    except ValueError as error:
        findings.warn("memory", f"{error} The memory plan leaves its states out.")
        stand = standing(facts, placement, "sgd")
    if casts_model(placement):
        model.to(computes_in)
    activations = _Counter(findings, model, None if casts_model(placement) else precision(placement))
    here = None if labels_elsewhere(args) else teacher
    planner = _Planner(args, facts, here, placement, stand, computes_in, device_bytes, reads_for_labels)
    memory = []
    for phase in phases:
        layout = phase.layout
        counted = None if layout is None else activations(layout)
        if layout is None or counted is None:
            continue
        memory += planner.around(phase, layout)
        memory.append(PhaseMemory(phase.name, peak(planner.training(phase, layout, counted))))
    return Estimate(facts, teacher, memory, _state_bytes(model, args, placement))


def _state_bytes(model: torch.nn.Module, args: Any, placement: Placement) -> int:
    trunk = find_trunk(model) if getattr(args, "cache_trunk", False) and placement.shards_weights == 1 else None
    if trunk is None:
        return 0
    embeddings = base_causal_lm(model).get_input_embeddings().weight
    drops = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in trunk.layers[0].modules())
    if embeddings.requires_grad or drops:
        return 0
    return base_causal_lm(model).config.get_text_config().hidden_size * embeddings.dtype.itemsize


@dataclass
class _Planner:
    args: Any
    facts: ModelFacts
    teacher: ModelFacts | None
    placement: Placement
    stand: Standing
    computes_in: torch.dtype
    device_bytes: int | None
    reads_for_labels: bool

    def around(self, phase: PlannedPhase, layout: Layout) -> list[PhaseMemory]:
        """What comes between two training phases: rollouts, the teacher's labels."""
        found = []
        if phase.rollout_rows != 0:
            moments = rollout_moments(
                self.stand,
                self.facts,
                self.placement,
                self._rollout_tokens(phase, layout),
                self.args.top_p < 1,
                self.args.repetition_penalty != 1,
                self.reads_for_labels,
                self.args.vllm_gpu_memory_utilization,
                self.device_bytes,
                # A server has devices of its own.
                self.args.rollout_engine == "vllm" and self.args.vllm_server_base_url is None,
            )
            found.append(PhaseMemory(f"rollouts {phase.iteration}", peak(moments)))
        if self.teacher is not None and self.args.cache_teacher and phase.iteration > 0:
            moment = teacher_moment(self.stand, self.teacher, self.args.rollout_batch_tokens, self.placement.cpu)
            found.append(PhaseMemory(f"soft labels {phase.iteration}", moment))
        return found

    def _rollout_tokens(self, phase: PlannedPhase, layout: Layout) -> int:
        """Rows of one batch: as many as the budget allows, one at least, and not more than there are."""
        most = self.args.rollout_batch_tokens
        if phase.rollout_rows is not None:
            most = min(most, phase.rollout_rows * layout.length)
        return max(most, layout.length)

    def training(self, phase: PlannedPhase, layout: Layout, activations: Activations) -> list[Moment]:
        teacher = self.teacher if phase.iteration > 0 else None
        # Soft corrections: the head that their hidden states were read with stands next to the policy's.
        corrects_softly = phase.iteration > 0 and getattr(self.args, "soft_labels", False)
        beside = 0 if teacher is None else self._teacher_bytes(teacher)
        if corrects_softly and self.args.teacher_top_k is None:
            beside = self.facts.vocab_size * self.facts.hidden_size * self.facts.head_dtype.itemsize
        return training_moments(
            self.stand,
            self.facts,
            self.placement,
            activations,
            self._head(
                layout, teacher is not None or corrects_softly or (phase.iteration > 0 and labels_elsewhere(self.args))
            ),
            self.args.gradient_checkpointing,
            self.args.gradient_accumulation_steps > 1,
            beside,
        )

    def _head(self, layout: Layout, distils: bool) -> HeadMemory:
        on_cpu = self.placement.cpu
        facts = self.facts
        head_dtype = self.computes_in if casts_model(self.placement) else facts.head_dtype
        shape = (facts.vocab_size, facts.hidden_size, head_dtype, self.computes_in, facts.head_trained)
        if distils:
            softened = getattr(self.args, "kd_temperature", 1) != 1
            return distillation_head(layout.scored, *shape, softened, self.args.divergence, facts.softcap, on_cpu)
        # On a CPU, TRL scores every position, and where nothing rolls out all is TRL's.
        positions = layout.rows * layout.length if on_cpu and self.args.is_plain_sft else layout.scored
        return fused_head(positions, *shape, facts.softcap, on_cpu)

    def _teacher_bytes(self, teacher: ModelFacts) -> int:
        if self.args.cache_teacher:
            return teacher.vocab_size * teacher.hidden_size * teacher.head_dtype.itemsize
        return teacher.bytes // self.placement.shards_weights


def _largest_teacher(args: Any, configs: Sequence[PretrainedConfig]) -> ModelFacts | None:
    """One is loaded at a time: the largest is what has to fit."""
    largest = None
    for config in configs:
        asked = args.teacher_model_init_kwargs or {}
        dtype = _dtype(asked.get("dtype", "auto"), config)
        # Packed weights are those that are not trained.
        model = meta_model(config, dtype, Placement()).requires_grad_(False)
        facts = model_facts(model, dtype, _packing(asked.get("quantization_config")))
        largest = facts if largest is None or facts.bytes > largest.bytes else largest
    return largest


def labels_elsewhere(args: Any) -> bool:
    """Whether soft labels come from a teacher that takes none of the training devices' memory: a server's, or one on the CPU."""
    if getattr(args, "alpha", 1) == 1:
        return False
    places = (args.teacher_model_init_kwargs or {}).get("device_map")
    places = [*places.values()] if isinstance(places, dict) else [places]
    return args.teacher_server_base_url is not None or {*map(str, places)} <= {"cpu", "disk"}


def _packing(quantization: Any) -> str | None:
    """How bitsandbytes packs linear layers, by the `quantization_config` of a `from_pretrained`."""
    if quantization is None:
        return None
    asked = quantization if isinstance(quantization, dict) else quantization.to_dict()
    if asked.get("load_in_4bit"):
        return "4bit-nested" if asked.get("bnb_4bit_use_double_quant") else "4bit"
    return "8bit" if asked.get("load_in_8bit") else None


class _Counter:
    """Activations by layout, each worked out once."""

    def __init__(self, findings: Findings, model: Any, autocast: torch.dtype | None):
        self.findings, self.model, self.autocast = findings, model, autocast
        self._counted: dict[tuple[int, int], Activations | None] = {}

    def __call__(self, layout: Layout) -> Activations | None:
        key = layout.rows, layout.length
        if key not in self._counted:
            self._counted[key] = self._count(*key)
        return self._counted[key]

    def _count(self, rows: int, length: int) -> Activations | None:
        try:
            return count_activations(self.model, rows, length, self.autocast)
        except Exception as error:
            # Whatever the code of a foreign architecture raises on tensors without values means the same.
            self.findings.warn(
                "memory",
                f"{self.model.config.model_type} could not be run without its weights ({type(error).__name__}: {error}): "
                "its memory in training is not planned.",
            )
            return None


def _dtype(name: Any, config: PretrainedConfig) -> torch.dtype:
    if isinstance(name, torch.dtype):
        return name
    if name in (None, "auto"):
        return config.dtype or torch.float32
    return getattr(torch, str(name).removeprefix("torch."))
