"""Reading whole sequences without gradients, and the logits of what was read, a chunk at a time."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .modeling import LMHead, model_device, read_backbone


# Logits that exist at one time: 2^24 floats are 64 MiB.
_CHUNK_ELEMENTS = 1 << 24


def pad_right(sequences: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Sequences of different length as one `(rows, longest)` tensor."""
    width = max(map(len, sequences))
    return torch.tensor([[*sequence, *[value] * (width - len(sequence))] for sequence in sequences])


def read(model: nn.Module, **inputs: Any) -> torch.Tensor:
    """The backbone's output for `inputs`, moved to where the model begins."""
    device = model_device(model)
    moved = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in inputs.items()}
    return read_backbone(model, **moved)


def read_along(
    model: nn.Module, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], pad_token_id: int
) -> torch.Tensor:
    """
    One teacher-forced pass over contexts and (non-empty) continuations.

    Returns:
        `torch.Tensor` of shape `(sum of continuation lengths, hidden_size)`: the hidden state that predicts each
        continuation token, row after row.
    """
    # The last token of a continuation is predicted, never read.
    sequences = [[*context, *rest[:-1]] for context, rest in zip(contexts, continuations, strict=True)]
    lengths = torch.tensor([[len(context), len(whole)] for context, whole in zip(contexts, sequences, strict=True)])
    output = read_padded(model, sequences, pad_token_id)
    positions = torch.arange(int(lengths.max()))
    wanted = (positions >= lengths[:, :1] - 1) & (positions < lengths[:, 1:])
    return output.last_hidden_state[wanted.to(output.last_hidden_state.device)]


def read_padded(model: nn.Module, sequences: Sequence[Sequence[int]], pad_token_id: int) -> torch.Tensor:
    """The backbone's output for whole sequences, padded on the right, where a causal model cannot see it."""
    lengths = torch.tensor([len(sequence) for sequence in sequences]).unsqueeze(1)
    return read(
        model,
        input_ids=pad_right(sequences, pad_token_id),
        attention_mask=(torch.arange(int(lengths.max())) < lengths).long(),
        use_cache=False,
    )


def most_probable(head: LMHead, hidden: torch.Tensor) -> torch.Tensor:
    """The argmax of each row's logits (ties: the lowest id), never holding more than one chunk of logits."""
    if len(hidden) == 0:
        return torch.empty(0, dtype=torch.long, device=hidden.device)
    return torch.cat([head(hidden[rows]).argmax(-1) for rows in logit_chunks(hidden, head.vocab_size)])


def logit_chunks(hidden: torch.Tensor, vocab_size: int) -> list[slice]:
    """Slices of `hidden`'s rows that are small enough for their logits to be held at once."""
    step = max(1, _CHUNK_ELEMENTS // vocab_size)
    return [slice(start, start + step) for start in range(0, len(hidden), step)]
