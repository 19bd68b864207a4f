"""Short, exact identities of weights and data: what ties a rollout to the policy and the rows that it came from."""

import hashlib

import torch
from datasets import Dataset
from torch import nn


_CHUNK_ELEMENTS = 1 << 22
_INTEGER_VIEWS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_fingerprint(model: nn.Module, trainable_only: bool = True) -> str:
    """
    Identity of a model's weights, by default of the trainable ones: 32 hexadecimal digits.

    The bits of each tensor are summed as integers, weighted by their position and modulo 2^64: exact, the same on every
    device and in any order of summation, and computed where the weights are. (It tells policies apart; it is no defence
    against an adversary.)
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad or not trainable_only:
            digest.update(f"{name}:{tuple(parameter.shape)}:{parameter.dtype}:{_bit_sum(parameter)}".encode())
    return digest.hexdigest()


@torch.no_grad()
def _bit_sum(tensor: torch.Tensor) -> int:
    bits = tensor.detach().contiguous().view(_INTEGER_VIEWS[tensor.element_size()]).flatten()
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, bits.numel(), _CHUNK_ELEMENTS):
        chunk = bits[start : start + _CHUNK_ELEMENTS].to(torch.int64)
        # Odd factors, so that no position's bits are multiplied away modulo 2^64.
        factors = torch.arange(start, start + chunk.numel(), device=chunk.device) * 0x9E3779B97F4A7C2 + 1
        total += ((chunk + 0x632BE5AB) * (factors | 1)).sum()
    return int(total)


def rows_fingerprint(dataset: Dataset, columns: tuple[str, ...] = ("input_ids", "labels")) -> str:
    """Identity of a tokenised data set's rows, in their order: 32 hexadecimal digits."""
    digest = hashlib.blake2b(str(len(dataset)).encode(), digest_size=16)
    for batch in dataset.select_columns([*columns]).with_format("numpy").iter(batch_size=1000):
        for column in columns:
            for row in batch[column]:
                digest.update(len(row).to_bytes(8, "little"))
                digest.update(row.astype("int64").tobytes())
    return digest.hexdigest()
