"""A device's memory between two training phases: while the policy rolls out or reads for labels, and while a teacher labels.

No gradients stand then. What comes and goes: keys and values, a layer's activations of the tokens that are read at once, logits.
"""

import torch

from ..core.fingerprint import _CHUNK_ELEMENTS as _FINGERPRINT_ELEMENTS
from ..core.laid_out_weights import SMALLEST_LAYER, copy_bytes
from ..core.reading import _CHUNK_ELEMENTS
from ..rollouts.local.sessions import _PREFILL_TOKENS, _PREFILL_TOKENS_ELSEWHERE
from .memory import Moment, Standing, autocast_copies, casts_model, compute_dtype
from .model import ModelFacts, Parameter
from .placement import Placement


#: A component of a moment: see [`laid_out`].
LAID_OUT = "laid-out weights"
# A share of the memory that is free when a rollout phase begins (`rollouts/vllm/phase.py`).
_VLLM_SHARE = 0.85
# Float32 tiles of a chunk's logits that stand while tokens are drawn. Noise is made in two integer tiles, a float one and its
# logarithm, on a GPU for the whole chunk at once; a CPU makes it in small parts. Top-p sorts: values, indices, probabilities, sums.
_TILES_NOISE = 5.0
_TILES_TOP_P = 7.0
# A repetition penalty: the logits, the first place of each token of a sequence, the same for each draw, and a mask.
_TILES_PENALTY = 3.25
# Ranking alone: the logits, and the head's product before it becomes float32.
_TILES_RANKING = 1.5
# Integers of 8 bytes for each weight of a chunk whose identity is worked out.
_TILES_FINGERPRINT = 5


def rollout_moments(
    stand: Standing,
    facts: ModelFacts,
    placement: Placement,
    batch_tokens: int,
    draws_top_p: bool = False,
    penalises: bool = False,
    labels: bool = False,
    vllm_gpu_share: float | None = None,
    device_bytes: int | None = None,
    uses_vllm: bool = False,
) -> list[Moment]:
    """
    The moments of a rollout phase: the training model in place, with its KV cache, and vLLM next to it where it draws.

    Args:
        batch_tokens (`int`): Tokens of a batch, prompts and responses.
        draws_top_p (`bool`): Whether `top_p` is below 1.
        penalises (`bool`): Whether there is a `repetition_penalty`.
        labels (`bool`): Whether the policy reads whole batches for labels (RAC, SPIN).
        vllm_gpu_share (`float`, *optional*): `vllm_gpu_memory_utilization`.
        device_bytes (`int`, *optional*): Memory of the whole device, where known.
    """
    parts = {**stand.parts, "gradients": 0}
    multiplying = {**parts, LAID_OUT: laid_out(facts, placement)}
    computes_in = compute_dtype(placement, facts.head_dtype)
    copies = autocast_copies(facts, placement)
    if facts.head_dtype != computes_in:
        copies += facts.vocab_size * facts.hidden_size * computes_in.itemsize
    largest = max((parameter.numel for parameter in facts.trained), default=0)
    moments = [
        Moment(
            "the policy's identity",
            {**parts, "activations": 8 * _TILES_FINGERPRINT * min(largest, _FINGERPRINT_ELEMENTS)},
        )
    ]
    if not uses_vllm:
        cache = {"KV cache": batch_tokens * facts.kv_bytes}
        prefill = _PREFILL_TOKENS["cpu"] if placement.cpu else _PREFILL_TOKENS_ELSEWHERE
        read = reading(facts, min(batch_tokens, prefill), placement)
        tiles = _TILES_TOP_P if draws_top_p else _TILES_RANKING if placement.cpu else _TILES_NOISE
        tiles = max(tiles, _TILES_PENALTY if penalises else 0)
        drawn = logits(facts.vocab_size, batch_tokens, tiles)
        moments.append(Moment("reading prompts", {**multiplying, "activations": copies + read, **cache}))
        moments.append(Moment("drawing tokens", {**multiplying, "activations": copies, **cache, "LM head": drawn}))
    if labels:
        read = reading(facts, batch_tokens, placement)
        ranked = logits(facts.vocab_size, batch_tokens, _TILES_RANKING)
        hidden = batch_tokens * facts.hidden_size * facts.head_dtype.itemsize
        moments.append(Moment("reading for labels", {**multiplying, "activations": copies + read}))
        moments.append(Moment("labelling", {**multiplying, "activations": copies + hidden, "LM head": ranked}))
    if uses_vllm:
        # Weights in the type that the model computes in; what is left of its share is KV cache.
        served = facts.num_parameters * computes_in.itemsize
        if device_bytes is not None:
            free = device_bytes - sum(parts.values())
            share = vllm_gpu_share * device_bytes if vllm_gpu_share is not None else _VLLM_SHARE * free
            served = max(served, round(share))
        moments.append(Moment("rolling out with vLLM", {**parts, "vLLM": served}))
    return moments


def teacher_moment(stand: Standing, teacher: ModelFacts, batch_tokens: int, on_cpu: bool = False) -> Moment:
    """A soft-label phase: the whole teacher next to the student, reading `batch_tokens` tokens at once."""
    whole = Placement(cpu=on_cpu)
    return Moment(
        "the teacher's labels",
        {
            **stand.parts,
            "gradients": 0,
            "teacher": teacher.bytes,
            LAID_OUT: laid_out(teacher, whole),
            "activations": reading(teacher, batch_tokens, whole),
            "LM head": logits(teacher.vocab_size, batch_tokens, 2 * _TILES_RANKING),
        },
    )


def laid_out(facts: ModelFacts, placement: Placement) -> int:
    """Bytes of the second copy of weights that a CPU multiplies with; with little memory free, none is made."""
    if not placement.cpu or placement.shards_weights > 1 or placement.mixed_precision != "no":
        return 0
    sizes = [parameter.numel for parameter in facts.parameters if _is_multiplied(parameter)]
    head = facts.vocab_size * facts.hidden_size if facts.head_dtype == torch.float32 else 0
    return copy_bytes(sum(size for size in (*sizes, head) if size >= SMALLEST_LAYER))


def _is_multiplied(parameter: Parameter) -> bool:
    return (
        parameter.layer is not None
        and len(parameter.shape) == 2
        and parameter.dtype == torch.float32
        and parameter.packed_bytes is None
    )


def reading(facts: ModelFacts, tokens: int, placement: Placement) -> int:
    """Bytes of a forward without a backward: hidden states in and out of a layer, and three times its widest part or four."""
    computes_in = compute_dtype(placement, facts.head_dtype)
    # Mixed precision leaves the hidden states between the layers in the weights' type.
    between = computes_in if casts_model(placement) else facts.head_dtype
    width = max((p.shape[0] for p in facts.parameters if p.layer is not None and len(p.shape) > 1), default=0)
    # PEFT casts what goes into an adapter to its float32, and casts it back.
    adapted = computes_in != torch.float32 and any(p.trained and p.dtype == torch.float32 for p in facts.parameters)
    wide = 4 if adapted and facts.head_dtype == computes_in else 3
    return tokens * (4 * facts.hidden_size * between.itemsize + wide * width * computes_in.itemsize)


def logits(vocab_size: int, positions: int, tiles: float) -> int:
    """Bytes of `tiles` float32 tiles of the logits that exist at one time."""
    return round(tiles * torch.float32.itemsize * min(_CHUNK_ELEMENTS, vocab_size * positions))
