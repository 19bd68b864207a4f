"""Works out what a cache lacks of a data set, between two phases of training; the processes of a run share the work."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from ...core.joint_dataset import JointDataset
from ...core.tensor_cache import SHARDS, TensorCache
from ...run.preemption import Preemption
from ...run.processes import Processes


# Limits of a shard, which is held in memory until it is written: pieces, and positions (1 GiB of a 7B's states).
_SHARD_PIECES, _SHARD_POSITIONS = 2048, 65536


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


class _Place(NamedTuple):
    """A piece that has no entry yet: where it is, not its tokens, which may not fit into memory all at once."""

    key: bytes
    tokens: int
    positions: int
    row: int
    number: int


@dataclass(frozen=True)
class Missing:
    """
    Args:
        total (`int`): Different pieces of a data set.
        places (`list`): Those without an entry, longest first.
    """

    total: int
    places: list[_Place]

    def metrics(self, prefix: str) -> dict[str, float]:
        """What was worked out, and what was there."""
        return {
            f"{prefix}/reused": self.total - len(self.places),
            f"{prefix}/num_tokens": sum(place.tokens for place in self.places),
        }


@dataclass(frozen=True)
class Pieces:
    """
    Args:
        of (`Callable`): The pieces of a row of a [`JointDataset`].
        title (`str`): What is worked out, for progress bars and messages.
    """

    of: Callable[[dict[str, Any]], Iterator[Piece]]
    title: str


@dataclass(frozen=True)
class Filler:
    """
    Works out what a cache lacks, together with the other processes of a run.

    Args:
        processes, preemption (`Callable`): Return the run's, which is there once it has begun.
        leave (`Callable`): Ends a run that was told to go, saying what is kept.
        is_shown (`bool`): Whether there are progress bars.
    """

    processes: Callable[[], Processes]
    preemption: Callable[[], Preemption]
    leave: Callable[[str], None]
    is_shown: bool

    def missing(self, cache: TensorCache, data: JointDataset, pieces: Pieces) -> Missing:
        """What `cache` lacks of `data`."""
        self._take_in_others(cache)
        self.processes().wait()  # before anyone adds some: the share of each follows from what is missing now
        seen: set[bytes] = set()
        places = []
        for row in self._bar(range(len(data)), f"Looking for {pieces.title}", "row"):
            for number, piece in enumerate(pieces.of(data[row])):
                if piece.key not in seen and piece.key not in cache:
                    places.append(_Place(piece.key, piece.tokens, piece.positions, row, number))
                seen.add(piece.key)
        places.sort(key=lambda place: (-place.tokens, place.key))
        return Missing(len(seen), places)

    def fill(
        self,
        cache: TensorCache,
        data: JointDataset,
        pieces: Pieces,
        missing: Missing,
        compute: Callable[[list[Any], Callable[[int], object]], list[dict[str, torch.Tensor]] | None],
    ) -> None:
        """
        Adds what is missing.

        Args:
            compute (`Callable`):
                Makes entries of the contents of some pieces, in their order; calls its second argument with the number of
                pieces that are done. `None` where it has stopped because the run was told to go.
        """
        processes, preemption = self.processes(), self.preemption()
        # Longest first, and dealt out one by one: equal shares of all lengths.
        mine = missing.places[processes.index :: processes.count]
        with self._bar(mine, pieces.title[0].upper() + pieces.title[1:], "branch") as bar:
            for shard in _shards(mine):
                if preemption.asked:
                    break
                contents = [_content(pieces, data, place) for place in shard]
                entries = compute(contents, bar.update)
                if entries is None:
                    break
                cache.add({place.key: entry for place, entry in zip(shard, entries, strict=True)})
        processes.wait()
        self._take_in_others(cache)
        if preemption.agreed():
            self.leave(f"the {pieces.title} so far are kept")

    def _bar(self, what: Sequence, title: str, unit: str) -> tqdm:
        return tqdm(what, desc=title, unit=unit, leave=False, dynamic_ncols=True, disable=not self.is_shown)

    def _take_in_others(self, cache: TensorCache) -> None:
        """Makes the entries that any process has this one's too."""
        if not self.processes().share_files:
            self.processes().hand_over(cache.folder, SHARDS)
        cache.refresh()


def _content(pieces: Pieces, data: JointDataset, place: _Place) -> Any:
    return next(itertools.islice(pieces.of(data[place.row]), place.number, None)).content


def _shards(places: Sequence[_Place]) -> Iterator[list[_Place]]:
    shard: list[_Place] = []
    positions = 0
    for place in places:
        if shard and (len(shard) == _SHARD_PIECES or positions + place.positions > _SHARD_POSITIONS):
            yield shard
            shard, positions = [], 0
        shard.append(place)
        positions += place.positions
    if shard:
        yield shard
