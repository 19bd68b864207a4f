"""Works out the teacher's labels of the branches that have none on disk yet, between two phases of training."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from ...core.branches import Branch
from ...core.joint_dataset import JointDataset, labelled
from ...core.soft_labels import SHARDS, SoftLabelCache, soft_label_key
from ...run.preemption import Preemption
from ...run.processes import Processes
from .teacher import Teacher, teacher_labels


logger = logging.getLogger(__name__)

# Of a shard, which is held in memory until it is written: branches, and positions with a label (1 GiB of a 7B's states).
_SHARD_ROWS, _SHARD_LABELS = 2048, 65536


class _Place(NamedTuple):
    """A branch that has no labels yet: where it is, not its tokens, which may not fit into memory all at once."""

    key: bytes
    tokens: int
    labels: int
    row: int
    number: int


@dataclass(frozen=True)
class Labelling:
    """
    How a teacher's labels are worked out.

    Args:
        teacher ([`Teacher`]): Loaded only while it reads.
        vocab_size (`int`): Tokens that student and teacher have in common.
        top_k (`int`, *optional*): Keep so many probabilities instead of hidden states.
        temperature (`float`): Of the probabilities that are kept.
        batch_tokens (`int`): Tokens that it reads at once.
    """

    teacher: Teacher
    vocab_size: int
    top_k: int | None
    temperature: float
    batch_tokens: int

    @property
    def name(self) -> str:
        """Of the folder: labels of other weights, or in another form, are others."""
        form = "hidden" if self.top_k is None else f"top{self.top_k}-t{self.temperature:g}"
        assert self.teacher.fingerprint is not None, "known once it has been loaded"
        return f"{self.teacher.fingerprint[:16]}-{form}-v{self.vocab_size}"


class SoftLabelPhase:
    """
    The soft labels of a run.

    Args:
        labelling ([`Labelling`]): Whose labels, and how.
        folder (`Path`): Where they are kept, each teacher's in a folder of its own.
        log (`Callable`): Takes metrics.
        leave (`Callable`): Ends a run that was told to go, saying what is kept.
        is_shown (`bool`): Whether there are progress bars.
    """

    def __init__(
        self,
        labelling: Labelling,
        folder: Path,
        log: Callable[[dict[str, float]], None],
        leave: Callable[[str], None],
        is_shown: bool,
    ):
        self.labelling, self.folder, self.log, self.leave, self.is_shown = labelling, folder, log, leave, is_shown
        self.processes: Processes
        self.preemption: Preemption
        self._cache: SoftLabelCache | None = None

    def run(self, data: JointDataset, processes: Processes, preemption: Preemption) -> SoftLabelCache:
        """The cache, once it has the labels of every branch of `data`; the teacher is loaded only if some are missing."""
        started, teacher = time.perf_counter(), self.labelling.teacher
        self.processes, self.preemption = processes, preemption
        if self._cache is None:
            # Which folder is the teacher's follows from its weights, and its LM head is needed in any case.
            with teacher.loaded() as model:
                self._cache = SoftLabelCache(self.folder / self.labelling.name)
                total, missing = self._missing(data)
                self._score(model, data, missing)
        else:
            total, missing = self._missing(data)
            if missing:
                with teacher.loaded() as model:
                    self._score(model, data, missing)
        seconds = time.perf_counter() - started
        self.log(
            {
                "teacher/scored": len(missing),
                "teacher/reused": total - len(missing),
                "teacher/num_tokens": sum(place.tokens for place in missing),
                "seconds/teacher": seconds,
            }
        )
        return self._cache

    def _missing(self, data: JointDataset) -> tuple[int, list[_Place]]:
        """How many different branches there are, and those without labels, longest first."""
        self._take_in_others()
        self.processes.wait()  # before anyone adds some: the share of each follows from what is missing now
        seen: set[bytes] = set()
        missing = []
        for row in self._bar(range(len(data)), "Looking for teacher's labels", "row"):
            for number, (context_ids, branch) in enumerate(labelled(data[row])):
                key = soft_label_key(context_ids, branch)
                if key not in seen and key not in self._kept:
                    labels = sum(label != -100 for label in branch.labels)
                    missing.append(_Place(key, len(context_ids) + len(branch.input_ids), labels, row, number))
                seen.add(key)
        missing.sort(key=lambda place: (-place.tokens, place.key))
        return len(seen), missing

    def _score(self, model: torch.nn.Module, data: JointDataset, missing: Sequence[_Place]) -> None:
        how, processes = self.labelling, self.processes
        # Longest first, and dealt out one by one: equal shares of all lengths.
        mine = missing[processes.index :: processes.count]
        with self._bar(mine, "Teacher's labels", "branch") as bar:
            for shard in _shards(mine):
                if self.preemption.asked:
                    break
                labels = teacher_labels(
                    how.teacher,
                    model,
                    [_branch(data, place) for place in shard],
                    how.vocab_size,
                    how.top_k,
                    how.temperature,
                    how.batch_tokens,
                    lambda rows, tokens: bar.update(rows),
                )
                self._kept.add({place.key: found for place, found in zip(shard, labels, strict=True)})
        processes.wait()
        self._take_in_others()
        if self.preemption.agreed():
            self.leave("the teacher's labels so far are kept")

    def _bar(self, what: Sequence, title: str, unit: str) -> tqdm:
        return tqdm(what, desc=title, unit=unit, leave=False, dynamic_ncols=True, disable=not self.is_shown)

    @property
    def _kept(self) -> SoftLabelCache:
        assert self._cache is not None
        return self._cache

    def _take_in_others(self) -> None:
        """Makes the labels that any process has this one's too."""
        if not self.processes.share_files:
            self.processes.hand_over(self._kept.folder, SHARDS)
        self._kept.refresh()


def _shards(places: Sequence[_Place]) -> Iterator[list[_Place]]:
    shard: list[_Place] = []
    labels = 0
    for place in places:
        if shard and (len(shard) == _SHARD_ROWS or labels + place.labels > _SHARD_LABELS):
            yield shard
            shard, labels = [], 0
        shard.append(place)
        labels += place.labels
    if shard:
        yield shard


def _branch(data: JointDataset, place: _Place) -> tuple[list[int], Branch]:
    return next(itertools.islice(labelled(data[place.row]), place.number, None))
