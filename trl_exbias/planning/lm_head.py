"""What scoring labels from hidden states needs: TRL's fused LM head, and the distillation loss.

Both work in chunks, so that the logits of all positions never stand at once; what stands is a number of tiles of a chunk, and
the gradients of the hidden states and of the head's weight, summed in float32. The numbers of tiles are read off the code of
TRL 1.16 (`trl/kernels/chunked_logprob.py`) and of `trl_exbias/core/distillation.py`; a benchmark measures them
(`python -m examples.benchmarks.memory_plan`).
"""

from dataclasses import dataclass

import torch

from ..core.distillation import _CHUNK_ELEMENTS, _CHUNK_ELEMENTS_ELSEWHERE, _PIECE_ELEMENTS
from ..core.divergences import FORWARD_KL, JENSEN_SHANNON, REVERSE_KL
from ..core.upstream import FUSED_HEAD_TOKENS, fused_head_positions


# Float32 tiles besides the buffer of the matrix product, where the tile is folded with torch's own operations (no Triton):
# in `_backward_tile` y, z, log p, p, the gradient, two terms of it and the boolean one-hot; tanh's value with a soft-cap.
_TILES_TORCH = 7.25
_TILES_SOFTCAP = 1.0
# Tiles of `_Distillation.forward`. As large as a chunk are the policy's logits, which become their gradient, and the teacher's; as
# large as a piece are log-probabilities and probabilities of both, and a difference.
_TILES_OF_CHUNK, _TILES_OF_PIECE = 2.0, 5.0
# What other divergences than the forward KL take in addition (`examples.benchmarks.kd_loss`).
_TILES_DIVERGENCE = {FORWARD_KL: 0, REVERSE_KL: 1, JENSEN_SHANNON: 2}


@dataclass(frozen=True)
class HeadMemory:
    """
    Bytes of scoring one micro-batch.

    Args:
        chunks (`int`): Tiles of a chunk's logits: gone when the scoring is done.
        gradients (`int`): Gradients of the hidden states and of the head's weight, until the backbone's backward takes them over.
    """

    chunks: int
    gradients: int

    @property
    def total(self) -> int:
        return self.chunks + self.gradients


def fused_head(
    positions: int,
    vocab_size: int,
    hidden_size: int,
    head_dtype: torch.dtype,
    compute_dtype: torch.dtype,
    trained: bool,
    softcap: bool = False,
    on_cpu: bool = False,
) -> HeadMemory:
    """
    Args:
        positions (`int`): Positions that are scored: those with a label; all of a batch on a CPU where nothing rolls out.
        head_dtype, compute_dtype (`torch.dtype`): What the weight is stored in, and what is computed in.
        trained (`bool`): Whether the head's weight has a gradient.
    """
    rows, columns = min(positions, fused_head_positions()), min(vocab_size, FUSED_HEAD_TOKENS)
    chunks = rows * FUSED_HEAD_TOKENS * compute_dtype.itemsize
    if on_cpu:
        chunks += round((_TILES_TORCH + _TILES_SOFTCAP * softcap) * 4 * rows * columns)
    if head_dtype != compute_dtype:
        chunks += columns * hidden_size * compute_dtype.itemsize
    return HeadMemory(chunks, _gradients(positions, vocab_size, hidden_size, head_dtype, compute_dtype, trained))


def distillation_head(
    positions: int,
    vocab_size: int,
    hidden_size: int,
    head_dtype: torch.dtype,
    compute_dtype: torch.dtype,
    trained: bool,
    softened: bool = False,
    divergence: str = FORWARD_KL,
    softcap: bool = False,
    on_cpu: bool = False,
) -> HeadMemory:
    """
    As [`fused_head`], of [`~trl_exbias.core.distillation.distillation_scores`].

    Args:
        softened (`bool`): Whether hard and soft labels need logits of their own (`kd_temperature` other than 1).
        divergence (`str`): One of `DIVERGENCES`.
    """
    elements = _CHUNK_ELEMENTS["cpu"] if on_cpu else _CHUNK_ELEMENTS_ELSEWHERE

    def tile_of(elements: int) -> int:
        return 4 * vocab_size * min(positions, max(1, elements // vocab_size))

    tile, of_piece = tile_of(elements), tile_of(_PIECE_ELEMENTS["cpu"] if on_cpu else elements)
    pieces = _TILES_OF_PIECE + softened + softcap + _TILES_DIVERGENCE[divergence]
    chunks = round(_TILES_OF_CHUNK * tile + pieces * of_piece)
    if compute_dtype != torch.float32:
        chunks += tile  # both heads' products before they become float32
    return HeadMemory(chunks, _gradients(positions, vocab_size, hidden_size, head_dtype, compute_dtype, trained))


def _gradients(
    positions: int,
    vocab_size: int,
    hidden_size: int,
    head_dtype: torch.dtype,
    compute_dtype: torch.dtype,
    trained: bool,
) -> int:
    def summed(numbers: int, dtype: torch.dtype) -> int:
        # In float32, and then once more in the type that it is handed on in.
        return numbers * (4 if dtype == torch.float32 else 4 + dtype.itemsize)

    hidden = summed(positions * hidden_size, compute_dtype)
    return hidden + (summed(vocab_size * hidden_size, head_dtype) if trained else 0)
