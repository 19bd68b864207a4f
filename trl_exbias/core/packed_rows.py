"""Rows without branches, several in one row of the batch: their positions start again, and transformers keeps them apart."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .modeling import (
    LMHead,
    agreement_tolerance,
    base_causal_lm,
    inference,
    model_device,
    read_backbone,
    relative_distance,
    uses_flash_attention,
)
from .packing import pack
from .spans import attention_chunk


#: Batch entry: the tokens of each example. The first entry, by whose length the Trainer counts a batch's examples.
EXAMPLE_LENGTHS = "exbias_lengths"


@dataclass
class PackedRowCollator:
    """
    Lays out rows of `input_ids` and `labels`, several in a row where that saves padding, else as `base` does.

    A batch holds the same examples either way, and the same labels: an example's first token is nobody's target.

    Args:
        base (`Callable`):
            The collator of a row for each example.
        pad_token_id (`int`):
            Padding token.
        break_even (`float`, *optional*):
            See [`~trl_exbias.core.packing.pack`].
        packed (`bool`, *optional*, defaults to `False`):
            Whether several examples may share a row: to be set once [`check_packed_rows`] has found nothing in the way.
        one_row (`bool`, *optional*, defaults to `False`):
            Whether they all share one: what FlashAttention's variable-length kernels take.
        limit (`int`, *optional*):
            Longest row.
        pad_to_multiple_of (`int`, *optional*):
            As in TRL's collator.

    Returns `exbias_lengths` of shape `(examples,)`, and `input_ids`, `labels` and `position_ids` of shape `(rows, length)`. There
    is no `attention_mask`: from positions that start again transformers makes the mask by itself.
    """

    base: Callable[[list[dict[str, Any]]], dict[str, Any]]
    pad_token_id: int
    break_even: float = 3000.0
    packed: bool = False
    one_row: bool = False
    limit: int | None = None
    pad_to_multiple_of: int | None = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        arranged = self.arrange([len(row["input_ids"]) for row in features]) if self.packed else []
        if len(arranged) in (0, len(features)):
            return self.base(features)
        return self.collate(features, arranged)

    def arrange(self, lengths: list[int]) -> list[list[int]]:
        """Which examples share a row, by their places in the batch."""
        if self.one_row:
            return [list(range(len(lengths)))]
        return pack(lengths, self.break_even, self.limit)

    def collate(self, features: list[dict[str, Any]], arranged: list[list[int]]) -> dict[str, torch.Tensor]:
        """The batch of these rows in that arrangement."""
        lengths = [len(row["input_ids"]) for row in features]
        width = max(sum(lengths[i] for i in row) for row in arranged)
        if self.pad_to_multiple_of is not None:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of

        def laid_out(values: Callable[[int], list[int]], padding: int) -> torch.Tensor:
            rows = [[value for i in row for value in values(i)] for row in arranged]
            return torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows])

        return {
            EXAMPLE_LENGTHS: torch.tensor(lengths),
            "input_ids": laid_out(lambda i: list(features[i]["input_ids"]), self.pad_token_id),
            # The model shifts labels by one: the first one would be a target of the example before.
            "labels": laid_out(lambda i: [-100, *features[i]["labels"][1:]], -100),
            # Each position of the padding starts again, as a sequence of its own.
            "position_ids": laid_out(lambda i: list(range(lengths[i])), 0),
        }

    @contextmanager
    def padded(self) -> Iterator[None]:
        """A row for each example in the block: what is made of the logits by others goes by rows."""
        before, self.packed = self.packed, False
        try:
            yield
        finally:
            self.packed = before

    def allow(self, model: nn.Module) -> str | None:
        """Packs from now on, unless something is in the way of `model`, which is returned."""
        reason = check_packed_rows(model)
        if reason is None:
            config = base_causal_lm(model).config
            self.packed = True
            self.one_row = uses_flash_attention(config)
            self.limit = attention_chunk(config)
        return reason


@torch.no_grad()
def check_packed_rows(model: nn.Module) -> str | None:
    """
    Reads two short sequences in one row and in two, and says what is in the way, `None` if nothing is.

    Catches what no list of architectures would: positions counted by the index in a row (ALiBi), recurrent layers, masks made
    by the model's own code.
    """
    tokens = torch.randint(LMHead(model).vocab_size, (2, 5), generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(model_device(model))
    one_row = {"input_ids": tokens.view(1, 10), "position_ids": torch.arange(5, device=tokens.device).repeat(2)[None]}
    name = type(base_causal_lm(model)).__name__
    with inference(model, own_attention=True):
        expected = read_backbone(
            model, input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False
        ).last_hidden_state
        try:
            found = read_backbone(model, **one_row, use_cache=False).last_hidden_state
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Whatever a foreign architecture raises at positions that start again means the same: it cannot take them.
            return f"{name} does not take positions that start again ({type(error).__name__}: {error})"
    distance = relative_distance(found.view_as(expected), expected)
    if distance < agreement_tolerance(model, expected.dtype):
        return None
    return f"{name} reads several examples in a row differently (hidden states {distance:.1e} off)"
