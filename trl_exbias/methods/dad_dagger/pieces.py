"""The pieces of a data set, for each of which a cache has an entry, and those that it lacks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple


class Piece(NamedTuple):
    """
    What an entry of a cache is worked out from.

    Args:
        key (`bytes`): The entry's address.
        content (`Any`): What is read.
        tokens (`int`): That are read.
        positions (`int`): That are kept.
    """

    key: bytes
    content: Any
    tokens: int
    positions: int


@dataclass(frozen=True)
class Pieces:
    """
    How a data set falls into pieces.

    Args:
        of (`Callable`): The pieces of a row of a [`JointDataset`].
        title (`str`): What is worked out, for progress bars and messages.
    """

    of: Callable[[dict[str, Any]], Iterator[Piece]]
    title: str


class Place(NamedTuple):
    """A piece that has no entry yet: where it is, not its tokens, which may not fit into memory all at once."""

    key: bytes
    tokens: int
    positions: int
    row: int
    number: int


@dataclass(frozen=True)
class Missing:
    """
    What a cache lacks of a data set.

    Args:
        total (`int`): Different pieces of the data set.
        places (`list`): Those without an entry, longest first.
    """

    total: int
    places: list[Place]

    def metrics(self, prefix: str) -> dict[str, float]:
        """What was worked out, and what was there."""
        return {
            f"{prefix}/reused": self.total - len(self.places),
            f"{prefix}/num_tokens": sum(place.tokens for place in self.places),
        }
