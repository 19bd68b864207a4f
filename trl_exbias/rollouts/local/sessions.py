"""Batches of sequences in the middle of being read or written: where each row stands, and its keys and values."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import Cache

from ...core.batching import token_batches
from ...core.modeling import attention_mask_4d, backbone, base_causal_lm, model_device
from ...core.reading import pad_right, read, read_padded
from ...core.token_ids import TokenIds
from ...core.upstream import CACHES, cache_argument
from .attention import attention_without_copies
from .cache import RaggedCache


# Prompts are read in groups of similar length, at least this many tokens at once: enough to keep the device busy.
_PREFILL_TOKENS = {"cpu": 1024}
_PREFILL_TOKENS_ELSEWHERE = 16384
# Dropping a row copies the cache of all others. Where a step costs nearly the same for a few rows more, this share of them may
# stand idle before they are dropped; a CPU's time goes into rows.
_IDLE_SHARE = {"cpu": 0.0}
_IDLE_SHARE_ELSEWHERE = 0.25


def _idle_share(model: nn.Module) -> float:
    return _IDLE_SHARE.get(model_device(model).type, _IDLE_SHARE_ELSEWHERE)


class RaggedSession:
    """A batch with one [`RaggedCache`]: every step runs a window of each row, wherever the row stands."""

    def __init__(self, model: nn.Module, pad_token_id: int, rows: int, length: int):
        config = base_causal_lm(model).config
        self.model = model
        self.pad_token_id = pad_token_id
        self.config = config
        self.length = length
        self.idle_share = _idle_share(model)
        # One slot more than there are tokens: what pads a window is written there, where no token looks.
        self.cache = RaggedCache(config.get_text_config().num_hidden_layers, rows, length + 1)
        self.given = {cache_argument(backbone(model)): self.cache}

    def prefill(self, sequences: Sequence[TokenIds]) -> torch.Tensor:
        """Reads the start of every row; returns the hidden state of each one's last token, `(B, H)`."""
        return self._read_starts([*range(len(sequences))], sequences)

    def restart(self, rows: list[int], sequences: Sequence[TokenIds]) -> None:
        """Puts new sequences in the place of `rows`. Reads all of their tokens except the last, which belongs to the next step."""
        starts = [(row, sequence[:-1]) for row, sequence in zip(rows, sequences, strict=True) if len(sequence) > 1]
        if starts:
            self._read_starts([row for row, _ in starts], [start for _, start in starts])

    def _read_starts(self, rows: list[int], sequences: Sequence[TokenIds]) -> torch.Tensor:
        device = model_device(self.model)
        budget = _PREFILL_TOKENS.get(device.type, _PREFILL_TOKENS_ELSEWHERE)
        last: dict[int, torch.Tensor] = {}
        for group in token_batches([len(sequence) for sequence in sequences], budget):
            # Right padding needs no mask: it stands after every token that is asked for, and is overwritten.
            tokens = pad_right([sequences[i] for i in group], self.pad_token_id)
            self.cache.write_start(torch.tensor([rows[i] for i in group], device=device), tokens.size(1))
            hidden = read(
                self.model,
                input_ids=tokens,
                position_ids=torch.arange(tokens.size(1)).unsqueeze(0),
                **self.given,
                use_cache=True,
            )
            for place, i in enumerate(group):
                last[i] = hidden.last_hidden_state[place, len(sequences[i]) - 1]
        return torch.stack([last[i] for i in range(len(sequences))])

    def step(self, tokens: torch.Tensor, starts: list[int]) -> torch.Tensor:
        """Last hidden states `(B, W, H)` of `tokens` `(B, W)`, row b standing at positions `starts[b]`, `+1`, …"""
        device = model_device(self.model)
        positions = torch.tensor(starts).unsqueeze(1) + torch.arange(tokens.size(1))
        slots = positions.clamp(max=self.length).to(device)
        # From the host's numbers: a device would have to be waited for.
        self.cache.write(slots, min(max(starts) + tokens.size(1) - 1, self.length) + 1)
        allowed = torch.arange(self.cache.cursor.visible, device=device) <= slots.unsqueeze(-1)
        with attention_without_copies(device):
            output = read(
                self.model,
                input_ids=tokens,
                attention_mask=attention_mask_4d(allowed.unsqueeze(1), self.config),
                position_ids=positions.clamp(max=self.length - 1),
                **self.given,
                use_cache=True,
            )
        return output.last_hidden_state

    def keep(self, rows: list[int]) -> None:
        self.cache.keep(torch.tensor(rows, device=model_device(self.model)))


class DenseSession:
    """A batch of rows that all stand at the same position, with the cache that the model makes by itself."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.idle_share = _idle_share(model)
        self.caches: dict[str, Any] = {}

    def prefill(self, sequences: list[list[int]]) -> torch.Tensor:
        return self.step(torch.tensor([[*sequence] for sequence in sequences]))[:, -1]

    def step(self, tokens: torch.Tensor, starts: list[int] | None = None) -> torch.Tensor:
        output = read(self.model, input_ids=tokens, use_cache=True, **self.caches)
        name = next((name for name in CACHES if output.get(name) is not None), None)
        if name is None:
            raise NotImplementedError("its forward returns no cache")
        self.caches = {name: output[name]}  # once: new releases answer to the old names too
        return output.last_hidden_state

    def keep(self, rows: list[int]) -> None:
        """Rows may be left out, reordered and repeated."""
        index = torch.tensor(rows, device=model_device(self.model))
        self.caches = {name: _select(cache, index) for name, cache in self.caches.items()}


def _select(cache: Any, rows: torch.Tensor) -> Any:
    """Rows of a cache, which is one of transformers' own or tensors whose first dimension is the batch."""
    if isinstance(cache, Cache):
        # Not `batch_select_indices`, which the layers of recurrent models do not have.
        cache.reorder_cache(rows)
        return cache
    if isinstance(cache, torch.Tensor):
        return cache.index_select(0, rows.to(cache.device))
    if isinstance(cache, (list, tuple)):
        return type(cache)(_select(part, rows) for part in cache)
    raise NotImplementedError(f"rows of a {type(cache).__name__} cannot be selected")


class RereadSession:
    """A batch whose rows are read from their start at every step: right for any causal model, at many more tokens."""

    idle_share = 0.0

    def __init__(self, model: nn.Module, pad_token_id: int, length: int):
        self.model = model
        self.pad_token_id = pad_token_id
        self.length = length
        self.rows: list[list[int]] = []

    def prefill(self, sequences: list[list[int]]) -> torch.Tensor:
        self.rows = [[*sequence] for sequence in sequences]
        return self._read(torch.tensor([[len(row) - 1] for row in self.rows]))[:, 0]

    def step(self, tokens: torch.Tensor, starts: list[int]) -> torch.Tensor:
        """As [`RaggedSession.step`]."""
        windows = zip(self.rows, starts, tokens.tolist(), strict=True)
        self.rows = [[*row[:start], *window][: self.length] for row, start, window in windows]
        places = torch.tensor(starts).unsqueeze(1) + torch.arange(tokens.size(1))
        # What pads a window may stand beyond the end; nobody asks for it.
        return self._read(places.clamp(max=self.length - 1))

    def keep(self, rows: list[int]) -> None:
        self.rows = [self.rows[row] for row in rows]

    def _read(self, places: torch.Tensor) -> torch.Tensor:
        hidden = read_padded(self.model, self.rows, self.pad_token_id).last_hidden_state
        return hidden[torch.arange(len(self.rows)).unsqueeze(1), places.to(hidden.device)]
