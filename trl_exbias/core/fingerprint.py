"""Short, exact identities of weights and data: what ties a rollout to the policy and the rows that it came from."""

import hashlib

import pyarrow as pa
import torch
from datasets import Dataset
from torch import nn

from .sharding import compute_device, local_part, reshard
from .upstream import plain_name, whole_shape


_CHUNK_ELEMENTS = 1 << 22
_INTEGER_VIEWS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_fingerprint(model: nn.Module, trainable_only: bool = True) -> str:
    """
    Identity of a model's weights, by default of the trainable ones: 32 hexadecimal digits.

    The bits of each tensor are summed as integers, weighted by their position and modulo 2^64: exact, the same on every
    device and in any order of summation, and computed where the weights are. (It tells policies apart. It does not defend
    against an adversary.)
    """
    # What FSDP2 holds whole for a while may be a half-precision copy.
    reshard(model)
    return parameters_fingerprint({n: p for n, p in model.named_parameters() if p.requires_grad or not trainable_only})


def parameters_fingerprint(parameters: dict[str, torch.Tensor], settings: str = "") -> str:
    """Identity of some parameters by name, and of the settings that are read along with them: see [`weights_fingerprint`]."""
    digest = hashlib.blake2b(settings.encode(), digest_size=16)
    for name, parameter in sorted((plain_name(name), parameter) for name, parameter in parameters.items()):
        digest.update(f"{name}:{whole_shape(parameter)}:{parameter.dtype}:{_bit_sum(parameter)}".encode())
    return digest.hexdigest()


@torch.no_grad()
def _bit_sum(parameter: torch.Tensor) -> int:
    part, offset, group = local_part(parameter)
    total = _bit_sum_of_part(part.contiguous(), offset)
    if group is not None:
        total = total.to(compute_device(parameter))
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
    # Not as numpy: `datasets` 5 cannot make that of a column in which some rows are null.
    for table in dataset.select_columns([*columns]).with_format("arrow").iter(batch_size=1000):
        for column in columns:
            if pa.types.is_integer(table[column].type):
                digest.update(table[column].to_numpy().astype("int64").tobytes())
                continue
            for row in table[column]:
                if row.values is None:
                    digest.update(b"null")
                    continue
                digest.update(len(row.values).to_bytes(8, "little"))
                digest.update(row.values.to_numpy(zero_copy_only=False).astype("int64").tobytes())
    return digest.hexdigest()
