"""A device's memory in each phase of a run, from the model's facts and the placement.

Two kinds of things stand in it: what stands always (weights, gradients, optimizer states, buffers of DDP, ZeRO or FSDP), and
what comes and goes within a step. A phase's peak is the largest sum over the moments of a step: the end of the forward with
the LM head, the LM head's backward, a layer's backward, the optimizer's step. `docs/planning.md` has the formulas in words.
"""

from dataclasses import dataclass

import torch

from ..core.errors import UsageError
from .activations import Activations
from .lm_head import HeadMemory
from .model import ModelFacts
from .optimizer import state_bytes, step_bytes
from .placement import Placement


GIB = 2**30
# DeepSpeed 0.19.8's defaults, in numbers, for its reduce bucket and for what ZeRO-3 fetches ahead.
_ZERO_BUCKET = 500_000_000
_ZERO3_PREFETCH = 50_000_000

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}

Parts = dict[str, int]


@dataclass(frozen=True)
class Moment:
    """
    What stands in a device's memory at one time.

    Args:
        name (`str`): When.
        parts (`dict[str, int]`): Bytes by component.
    """

    name: str
    parts: Parts

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Standing:
    """Bytes of one device that stand through all phases. Built by [`standing`]."""

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    step: int

    @property
    def parts(self) -> Parts:
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "buffers": self.buffers,
        }


def precision(placement: Placement) -> torch.dtype | None:
    """The type of mixed precision; `None` where there is none."""
    return _PRECISIONS.get(placement.mixed_precision)


def compute_dtype(placement: Placement, dtype: torch.dtype) -> torch.dtype:
    """What a model loaded in `dtype` computes in."""
    return precision(placement) or dtype


def casts_model(placement: Placement) -> bool:
    """Whether the weights themselves stand in the mixed precision's type (ZeRO, FSDP), instead of being cast as they are used."""
    return precision(placement) is not None and (placement.is_zero or placement.sharding == "fsdp")


def standing(facts: ModelFacts, placement: Placement, optim: str) -> Standing:
    """
    What stands on each device, for these weights, this placement and this optimizer.

    Raises:
        ValueError: for an optimizer whose states are not known here.
    """
    trained, mixed = facts.trained, precision(placement)
    float32_states = placement.is_zero or (placement.sharding == "fsdp" and mixed is not None)
    states = state_bytes(optim, trained, placement.shards_optimizer, in_float32=float32_states)
    if states is None:
        raise UsageError(f"What `optim: {optim}` keeps for each parameter is not known here.")
    numbers, frozen = facts.num_trained, facts.bytes - sum(parameter.bytes for parameter in trained)
    as_loaded = sum(parameter.bytes for parameter in trained)
    if placement.is_zero:
        size = (mixed or torch.float32).itemsize if mixed else _size(facts)
        frozen = frozen if not mixed else _at_most(facts, mixed)
        weights = frozen + numbers * size
        gradients = numbers * size
        buffers = min(_ZERO_BUCKET, numbers) * size
        if placement.sharding == "zero3":
            fetched = facts.largest_layer + min(_ZERO3_PREFETCH, facts.num_parameters)
            buffers += (fetched + facts.vocab_size * facts.hidden_size) * size
        states += -(-4 * numbers // placement.num_processes)  # the float32 weights
        step = -(-4 * numbers // placement.num_processes)  # and gradients
    elif placement.sharding == "fsdp":
        # accelerate keeps what is trained in float32 under mixed precision.
        stored = 4 * numbers if mixed else as_loaded
        weights, gradients = frozen + stored, stored
        size = compute_dtype(placement, facts.head_dtype).itemsize
        buffers = (3 * facts.largest_layer + facts.outside_layers) * size
        step = step_bytes(optim, trained, placement.cpu) // placement.num_processes
    else:
        weights, gradients = frozen + as_loaded, as_loaded
        buffers = as_loaded if placement.sharding == "ddp" else 0
        step = step_bytes(optim, trained, placement.cpu)
    return Standing(
        weights=0 if placement.offloads_parameters else weights // placement.shards_weights,
        gradients=0 if placement.offloads_optimizer and placement.is_zero else gradients // placement.shards_gradients,
        optimizer=0 if placement.offloads_optimizer else states,
        buffers=buffers,
        step=0 if placement.offloads_optimizer else step,
    )


def training_moments(
    stand: Standing,
    facts: ModelFacts,
    placement: Placement,
    activations: Activations,
    head: HeadMemory,
    checkpointing: bool,
    accumulates: bool,
    teacher: int = 0,
) -> list[Moment]:
    """
    The moments of a training step.

    Args:
        accumulates (`bool`): Whether gradients of earlier micro-batches stand when the forward begins.
        teacher (`int`): Bytes of the teacher, or of its LM head, on the device.
    """
    always = {**stand.parts, **({"teacher": teacher} if teacher else {})}
    before = {**always, "gradients": stand.gradients if accumulates else 0}
    kept = activations.kept(checkpointing)
    # Without checkpointing, autograd keeps the same copies: they are activations already.
    copies = autocast_copies(facts, placement) if checkpointing else 0
    return [
        Moment("LM head, forward", {**before, "activations": kept + copies, "LM head": head.chunks}),
        Moment("LM head, backward", {**before, "activations": kept, "LM head": head.total}),
        Moment(
            "a layer's backward",
            {
                **before,
                "activations": kept + activations.recomputed(checkpointing) + activations.gradients,
                "LM head": 0 if accumulates or not facts.head_trained else head.gradients,
            },
        ),
        Moment(
            "the first layer's backward",
            {**always, "activations": activations.layer + activations.rest + activations.gradients},
        ),
        Moment("the optimizer's step", {**always, "step": stand.step}),
    ]


def peak(moments: list[Moment]) -> Moment:
    return max(moments, key=lambda moment: moment.total)


def autocast_copies(facts: ModelFacts, placement: Placement) -> int:
    """Bytes of the casts that autocast keeps, of each float32 weight of a layer that is trained, until the forward is done."""
    mixed = precision(placement)
    if mixed is None or casts_model(placement):
        return 0
    return sum(
        parameter.numel * mixed.itemsize
        for parameter in facts.trained
        if parameter.dtype == torch.float32 and len(parameter.shape) > 1 and parameter.layer is not None
    )


def _size(facts: ModelFacts) -> int:
    return max((parameter.dtype.itemsize for parameter in facts.trained), default=4)


def _at_most(facts: ModelFacts, dtype: torch.dtype) -> int:
    """Frozen weights in `dtype`, quantized ones as they are."""
    frozen = (parameter for parameter in facts.parameters if not parameter.trained)
    return sum(min(parameter.bytes, parameter.numel * dtype.itemsize) for parameter in frozen)
