"""A KV cache whose rows stand at different positions.

Slot s of a row holds the key and value of that row's token s. A forward writes to the slots it is told and sees
everything up to the furthest slot written, so tokens that turn out wrong are simply written again, and rows advance at
their own pace. What a query may see is the attention mask's business: slots up to its own position.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class _Cursor:
    """Where the next forward writes, shared by the layers."""

    def __init__(self, num_rows: int, capacity: int):
        self.num_rows = num_rows
        self.capacity = capacity
        self.rows: torch.Tensor | None = None  # (B, 1)
        self.slots: torch.Tensor | None = None  # (B, W)
        self.visible = 0
        self.from_start = False


class _RaggedLayer(CacheLayerMixin):
    is_sliding = False

    def __init__(self, cursor: _Cursor):
        super().__init__()
        self.cursor = cursor

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        # (B, capacity, heads, head size): one token's heads are contiguous, so a scattered write copies whole rows.
        self.keys, self.values = (
            states.new_zeros(self.cursor.num_rows, self.cursor.capacity, states.size(1), states.size(3))
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        written = self.cursor.rows, self.cursor.slots
        self.keys[written] = key_states.transpose(1, 2)
        self.values[written] = value_states.transpose(1, 2)
        if self.cursor.from_start:
            return key_states, value_states
        visible = self.cursor.visible
        return self.keys[:, :visible].transpose(1, 2), self.values[:, :visible].transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cursor.visible, 0

    def get_seq_length(self) -> int:
        # Old releases make the causal mask of `eager` from it: what was there before a forward, at the start nothing.
        return 0 if self.cursor.from_start else self.cursor.visible

    def get_max_length(self) -> int:
        return self.cursor.capacity

    get_max_cache_shape = get_max_length  # its name in older releases


class RaggedCache(Cache):
    """
    A cache of `capacity` slots a row, to be used with explicit positions and, after the start, a 4-D mask.

    Args:
        num_layers (`int`): Layers of the model.
        num_rows (`int`): Rows of the batch.
        capacity (`int`): Slots of each row.
    """

    def __init__(self, num_layers: int, num_rows: int, capacity: int):
        self.cursor = _Cursor(num_rows, capacity)
        super().__init__(layers=[_RaggedLayer(self.cursor) for _ in range(num_layers)])

    def write_start(self, rows: torch.Tensor, width: int) -> None:
        """The next forward runs `rows` alone, over their first `width` tokens, which see nothing but themselves."""
        self.cursor.rows = rows.unsqueeze(1)
        self.cursor.slots = torch.arange(width, device=rows.device).unsqueeze(0)
        self.cursor.visible, self.cursor.from_start = width, True

    def write(self, slots: torch.Tensor, visible: int) -> None:
        """The next forward runs all rows and writes their tokens to `slots` `(B, W)`, all of which are below `visible`."""
        self.cursor.rows = torch.arange(slots.size(0), device=slots.device).unsqueeze(1)
        self.cursor.slots = slots
        self.cursor.visible, self.cursor.from_start = visible, False

    def get_query_offset(self, layer_idx: int = 0) -> int:
        # Asked for only by a forward without a mask, which is one that starts at slot 0.
        return 0

    def keep(self, rows: torch.Tensor) -> None:
        """Drops all rows but `rows`."""
        self.cursor.num_rows = len(rows)
        for layer in filter(lambda layer: layer.is_initialized, self.layers):
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
