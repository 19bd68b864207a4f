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
            shape = getattr(parameter, "ds_shape", parameter.shape)
            digest.update(f"{name}:{tuple(shape)}:{parameter.dtype}:{_bit_sum(parameter)}".encode())
    return digest.hexdigest()


@torch.no_grad()
def _bit_sum(parameter: torch.Tensor) -> int:
    if not hasattr(parameter, "ds_tensor"):
        return int(_bit_sum_of_part(parameter.detach().contiguous(), 0))
    # ZeRO-3 (DeepSpeed 0.19): each process holds a slice of the flat weights, the last one with padding.
    group, part = parameter.ds_process_group, parameter.ds_tensor
    offset = torch.distributed.get_rank(group) * part.ds_numel
    total = _bit_sum_of_part(part.detach()[: max(0, parameter.ds_numel - offset)], offset).to(parameter.device)
    torch.distributed.all_reduce(total, group=group)
    return int(total)


def _bit_sum_of_part(part: torch.Tensor, offset: int) -> torch.Tensor:
    bits = part.view(_INTEGER_VIEWS[part.element_size()]).flatten()
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, bits.numel(), _CHUNK_ELEMENTS):
        chunk = bits[start : start + _CHUNK_ELEMENTS].to(torch.int64)
        # Odd factors, so that no position's bits are multiplied away modulo 2^64.
        positions = torch.arange(offset + start, offset + start + chunk.numel(), device=chunk.device)
        total += ((chunk + 0x632BE5AB) * ((positions * 0x9E3779B97F4A7C2 + 1) | 1)).sum()
    return total


def rows_fingerprint(dataset: Dataset, columns: tuple[str, ...] = ("input_ids", "labels")) -> str:
    """Identity of a tokenised data set's rows, in their order: 32 hexadecimal digits."""
    digest = hashlib.blake2b(str(len(dataset)).encode(), digest_size=16)
    for batch in dataset.select_columns([*columns]).with_format("numpy").iter(batch_size=1000):
        for column in columns:
            for row in batch[column]:
                digest.update(len(row).to_bytes(8, "little"))
                digest.update(row.astype("int64").tobytes())
    return digest.hexdigest()
