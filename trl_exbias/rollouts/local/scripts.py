"""What decoding token by token goes by: which token is forced, and when a row ends."""

from collections.abc import Sequence

from ...core.token_ids import TokenIds
from ..engine import SamplingOptions


class FreeRunning:
    """Every token is the policy's; a row ends with a stop token, a stop string, or at the limit."""

    def __init__(self, options: SamplingOptions):
        self.limit = options.max_new_tokens
        self.stop_token_ids = frozenset(options.stop_token_ids)
        self.stop_strings = options.stop_strings

    def max_length(self, row: int) -> int:
        return self.limit

    def forced(self, row: int, position: int) -> int | None:
        return None

    def ended(self, rows: list[int], responses: list[list[int]]) -> list[bool]:
        # All rows at once: a step's search takes some milliseconds for any number of them.
        stopped = [False] * len(rows) if self.stop_strings is None else self.stop_strings.end(responses)
        return [
            stop or len(response) == self.limit or response[-1] in self.stop_token_ids
            for stop, response in zip(stopped, responses, strict=True)
        ]

    def complete(self, row: int, response: list[int]) -> list[int]:
        return response


class Mixing:
    """Gold where the mask is false; a row ends after its last sampled position and is completed with gold."""

    def __init__(self, references: Sequence[TokenIds], sampled: list[list[int]]):
        self.references = references
        self.sampled = [frozenset(positions) for positions in sampled]
        self.last = [positions[-1] if positions else -1 for positions in sampled]

    def max_length(self, row: int) -> int:
        return self.last[row] + 1

    def forced(self, row: int, position: int) -> int | None:
        return None if position in self.sampled[row] else self.references[row][position]

    def ended(self, rows: list[int], responses: list[list[int]]) -> list[bool]:
        return [len(response) > self.last[row] for row, response in zip(rows, responses, strict=True)]

    def complete(self, row: int, response: list[int]) -> list[int]:
        return [*response, *self.references[row][len(response) :]]
