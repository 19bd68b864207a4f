"""The bar of a rollout phase: rows done of this process's, tokens a second, time left."""

import time

from tqdm.auto import tqdm


class RolloutProgress:
    """
    Args:
        title (`str`): What the bar is of.
        total (`int`): Rows of this process.
        calls_per_row (`int`): Calls of the engine that a row takes.
        is_shown (`bool`): Whether there is a bar; what was drawn is counted without one too.
    """

    def __init__(self, title: str, total: int, calls_per_row: int, is_shown: bool):
        self.bar = tqdm(total=total, desc=title, unit="row", leave=False, dynamic_ncols=True, disable=not is_shown)
        self.share = 1 / calls_per_row
        self.rows_stored = 0
        self.tokens = 0
        self.started = time.perf_counter()

    def __enter__(self) -> "RolloutProgress":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.bar.close()

    def update(self, rows: int, tokens: int) -> None:
        """An engine has finished `rows` rows, and worked out `tokens` tokens."""
        self.tokens += tokens
        self.bar.set_postfix_str(f"{self.tokens / (time.perf_counter() - self.started):,.0f} tokens/s", refresh=False)
        self.bar.update(rows * self.share)

    def shard_done(self, rows: int) -> None:
        """A shard of `rows` rows is on disk."""
        self.rows_stored += rows
        self.bar.update(self.rows_stored - self.bar.n)
