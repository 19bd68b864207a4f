"""Counter-based random numbers: every draw is a pure function of (seed, example, position).

A stateful generator would tie a draw to how many draws came before it, and so to the batch size, the order of the
rows, the number of processes and the point at which a run was resumed. Here the noise of a position is a hash of its
key, the same on every device: integer arithmetic up to the uniform, floating point only in the final logarithms.

The mixers are the finalisers of SplitMix64 (Steele et al., 2014) for keys and of `lowbias32` (Wellons, 2018) for the
wide arrays, where 32-bit integers halve the memory traffic.
"""

from collections.abc import Iterator, Sequence

import torch


_MASK_64 = 0xFFFFFFFFFFFFFFFF
_GOLDEN_32 = 0x9E3779B9 - (1 << 32)  # as a signed 32-bit integer
_CHUNK_ELEMENTS = 1 << 19  # about 2 MiB of int32: the passes of one chunk stay in the cache


def _mix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK_64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return x ^ (x >> 31)


def derive_seed(seed: int, *path: int | str) -> int:
    """A 64-bit seed for the stream named by `path` (integers or short strings), independent of its siblings'."""
    state = _mix64(seed & _MASK_64)
    for part in path:
        value = int.from_bytes(part.encode(), "little") if isinstance(part, str) else part
        # A long string is folded in 64 bits at a time.
        while True:
            state = _mix64(state ^ _mix64(value & _MASK_64))
            value >>= 64
            if value <= 0:
                break
    return state


def sample_ids(example_ids: Sequence[int], num_samples: int) -> list[int]:
    """
    Keys for several samples of each example, sample after sample, then example after example.

    The first sample's key is the example's own, and no key depends on how many samples there are.
    """
    return [
        derive_seed(sample, "sample", example) if sample else example
        for example in example_ids
        for sample in range(num_samples)
    ]


def _mix32_(x: torch.Tensor, scratch: torch.Tensor) -> None:
    # `>>` on int32 is arithmetic, so the sign bits are masked off to make it logical.
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32)), (16, None)):
        torch.bitwise_right_shift(x, shift, out=scratch)
        scratch &= (1 << (32 - shift)) - 1
        x ^= scratch
        if multiplier is not None:
            x *= multiplier


def _keys(seed: int, example_ids: list[int], positions: list[int], device: torch.device) -> torch.Tensor:
    """Two 32-bit keys for each (example, position), as an int32 tensor of shape `(rows, 2)`."""
    rows = []
    for example, position in zip(example_ids, positions, strict=True):
        key = derive_seed(seed, example, position)
        low, high = key & 0xFFFFFFFF, key >> 32
        rows.append((low - (1 << 32) if low >> 31 else low, high - (1 << 32) if high >> 31 else high))
    return torch.tensor(rows, dtype=torch.int32, device=device).view(-1, 2)


def _uniform_chunks(keys: torch.Tensor, width: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yields `(rows, uniforms)`: a slice of `keys`' rows and their uniforms in (0, 1), float32 `(rows, width)`."""
    columns = torch.arange(width, dtype=torch.int32, device=keys.device) * _GOLDEN_32
    rows_per_chunk = max(1, _CHUNK_ELEMENTS // max(width, 1)) if keys.device.type == "cpu" else 1 << 10
    for start in range(0, len(keys), rows_per_chunk):
        rows = slice(start, min(start + rows_per_chunk, len(keys)))
        x = columns + keys[rows, :1]
        scratch = torch.empty_like(x)
        _mix32_(x, scratch)
        x ^= keys[rows, 1:]
        _mix32_(x, scratch)
        x &= 0x7FFFFFFF
        # 31 bits, and float32 keeps 24 significant ones: small uniforms are exact, the largest round to 1 and are
        # pulled back below it. The Gumbel's upper tail comes from small uniforms, where the resolution is.
        yield rows, x.float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)


def uniform(seed: int, example_ids: list[int], width: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Uniforms in (0, 1), one row for each example: float32 of shape `(len(example_ids), width)`."""
    device = torch.device(device)
    keys = _keys(seed, example_ids, [0] * len(example_ids), device)
    out = torch.empty(len(example_ids), width, device=device)
    for rows, u in _uniform_chunks(keys, width):
        out[rows] = u
    return out


def add_gumbel_(scores: torch.Tensor, seed: int, example_ids: list[int], positions: list[int]) -> torch.Tensor:
    """Adds standard Gumbel noise in place, so that `argmax` draws from `softmax(scores)` (the Gumbel-max trick).

    Row m receives the noise of the key `(seed, example_ids[m], positions[m])`, whatever other rows are there.

    Args:
        scores (`torch.Tensor` of shape `(rows, vocab_size)`):
            Unnormalised log-probabilities, float32.
        seed (`int`), example_ids (`list[int]`), positions (`list[int]`):
            The keys; the two lists have one entry for each row.

    Returns:
        `torch.Tensor`: `scores` itself.
    """
    for rows, u in _uniform_chunks(_keys(seed, example_ids, positions, scores.device), scores.size(-1)):
        exponential = torch.log1p(u.neg_()).neg_()
        scores[rows] -= exponential.log_()
    return scores
