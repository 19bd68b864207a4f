"""Length-sorted, token-budgeted batches that halve themselves when memory runs out."""

import logging
from collections import deque
from collections.abc import Callable, Sequence

import torch

from .errors import DoesNotFitError


logger = logging.getLogger(__name__)


#: Share of padding that a forward over whole sequences may have, and the tokens from which on a batch keeps a device busy.
READING_PADDING, _BUSY_TOKENS = 0.05, 2048


def token_batches(lengths: Sequence[int], max_tokens: int, max_padding: float = 1.0) -> list[list[int]]:
    """
    Row indices in batches of similar length, longest first, each of at most `max_tokens` tokens with padding.

    The longest batch comes first so that memory runs out at once or not at all. A row longer than the budget is a
    batch of its own. A batch that is large enough to keep a device busy ends where a larger share than `max_padding` of it would
    be padding.
    """
    batches: list[list[int]] = []
    tokens = 0
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        batch = batches[-1] if batches else []
        slots = lengths[batch[0]] * len(batch) if batch else 0
        larger = slots + lengths[batch[0]] if batch else 0
        is_padded = slots >= _BUSY_TOKENS and tokens + lengths[row] < (1 - max_padding) * larger
        if batch and larger <= max_tokens and not is_padded:
            batch.append(row)
            tokens += lengths[row]
        else:
            batches.append([row])
            tokens = lengths[row]
    return batches


def groups_of_equal_length(rows: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """These rows in groups that need no padding; `lengths` is indexed by row."""
    groups: dict[int, list[int]] = {}
    for row in rows:
        groups.setdefault(lengths[row], []).append(row)
    return list(groups.values())


def run_in_batches(
    run: Callable[[list[int]], None], lengths: Sequence[int], max_tokens: int, max_padding: float = 1.0
) -> int:
    """
    Calls `run` with every row index once, in batches of `token_batches`, halving on an out-of-memory error.

    Args:
        run (`Callable[[list[int]], None]`):
            Computes and stores the results of these rows; runs again on a part of them after running out of memory.
        lengths (`Sequence[int]`):
            Tokens of each row.
        max_tokens (`int`):
            Budget of a batch.
        max_padding (`float`, *optional*, defaults to 1):
            See [`token_batches`].

    Returns:
        `int`: The budget that held, to start from next time.

    Raises:
        DoesNotFitError: if a single row does not fit.
    """
    queue = deque(token_batches(lengths, max_tokens, max_padding))
    while queue:
        batch = queue.popleft()
        try:
            run(batch)
            continue
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise DoesNotFitError(
                    f"A single sequence of {lengths[batch[0]]} tokens does not fit in memory. Shorten `max_length` or "
                    "`max_new_tokens`, or free memory on the device."
                ) from error
        # Outside the handler, whose traceback would keep the failed forward's tensors alive.
        torch.cuda.empty_cache()
        max_tokens = max(lengths[batch[0]], lengths[batch[0]] * len(batch) // 2)
        logger.warning(
            f"Out of memory with {len(batch)} sequences at once: continuing with {max_tokens} tokens a batch."
        )
        rows = [row for waiting in (batch, *queue) for row in waiting]
        parts = token_batches([lengths[row] for row in rows], max_tokens, max_padding)
        queue = deque([[rows[i] for i in part] for part in parts])
    return max_tokens
