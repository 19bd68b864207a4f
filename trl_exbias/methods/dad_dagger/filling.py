"""Works out what a cache lacks of a data set, between two phases of training; the processes of a run share the work."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from ...core.joint_dataset import JointDataset
from ...core.tensor_cache import SHARDS, TensorCache
from ...run.preemption import Preemption
from ...run.processes import Processes
from .pieces import Missing, Pieces, Place


# Limits of a shard, which is held in memory until it is written: pieces, and positions (1 GiB of a 7B's states).
_SHARD_PIECES, _SHARD_POSITIONS = 2048, 65536


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
                    places.append(Place(piece.key, piece.tokens, piece.positions, row, number))
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


def _content(pieces: Pieces, data: JointDataset, place: Place) -> Any:
    return next(itertools.islice(pieces.of(data[place.row]), place.number, None)).content


def _shards(places: Sequence[Place]) -> Iterator[list[Place]]:
    shard: list[Place] = []
    positions = 0
    for place in places:
        if shard and (len(shard) == _SHARD_PIECES or positions + place.positions > _SHARD_POSITIONS):
            yield shard
            shard, positions = [], 0
        shard.append(place)
        positions += place.positions
    if shard:
        yield shard
