"""Works out the teacher's labels of the branches that have none on disk yet, between two phases of training."""

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm.auto import tqdm

from ...core.branches import Branch
from ...core.joint_dataset import JointDataset, labelled
from ...core.soft_labels import SHARDS, SoftLabelCache, soft_label_key
from ...run.run_directory import SOFT_LABELS
from .teacher import teacher_labels


if TYPE_CHECKING:
    from .trainer import DaDDaggerTrainer

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


class SoftLabelPhase:
    """
    The soft labels of a run.

    Args:
        trainer ([`DaDDaggerTrainer`]): Has the teacher and the settings.
    """

    def __init__(self, trainer: "DaDDaggerTrainer"):
        self.trainer = trainer
        self._cache: SoftLabelCache | None = None

    def run(self, data: JointDataset) -> SoftLabelCache:
        """The cache, once it has the labels of every branch of `data`; the teacher is loaded only if some are missing."""
        started, teacher = time.perf_counter(), self.trainer.teacher
        if self._cache is None:
            # Which folder is the teacher's follows from its weights, and its LM head is needed in any case.
            with teacher.loaded() as model:
                self._cache = SoftLabelCache(self._folder())
                total, missing = self._missing(data)
                self._score(model, data, missing)
        else:
            total, missing = self._missing(data)
            if missing:
                with teacher.loaded() as model:
                    self._score(model, data, missing)
        seconds = time.perf_counter() - started
        self.trainer.log_now(
            {
                "teacher/scored": len(missing),
                "teacher/reused": total - len(missing),
                "teacher/num_tokens": sum(place.tokens for place in missing),
                "seconds/teacher": seconds,
            }
        )
        return self._cache

    def _folder(self) -> Path:
        args, teacher = self.trainer.args, self.trainer.teacher
        form = "hidden" if args.teacher_top_k is None else f"top{args.teacher_top_k}-t{args.kd_temperature:g}"
        root = Path(args.soft_label_dir or Path(args.output_dir) / SOFT_LABELS)
        return root / f"{teacher.fingerprint[:16]}-{form}-v{self.trainer.shared_vocab}"

    def _missing(self, data: JointDataset) -> tuple[int, list[_Place]]:
        """How many different branches there are, and those without labels, longest first."""
        self._take_in_others()
        self.trainer.processes.wait()  # before anyone adds some: the share of each follows from what is missing now
        seen: set[bytes] = set()
        missing = []
        for row in self._bar(range(len(data)), "Looking for teacher's labels", "row"):
            for number, (context_ids, branch) in enumerate(labelled(data[row])):
                key = soft_label_key(context_ids, branch)
                if key not in seen and key not in self._cache:
                    labels = sum(label != -100 for label in branch.labels)
                    missing.append(_Place(key, len(context_ids) + len(branch.input_ids), labels, row, number))
                seen.add(key)
        missing.sort(key=lambda place: (-place.tokens, place.key))
        return len(seen), missing

    def _score(self, model, data: JointDataset, missing: Sequence[_Place]) -> None:
        args, processes = self.trainer.args, self.trainer.processes
        # Longest first, and dealt out one by one: equal shares of all lengths.
        mine = missing[processes.index :: processes.count]
        with self._bar(mine, "Teacher's labels", "branch") as bar:
            for shard in _shards(mine):
                if self.trainer.preemption.asked:
                    break
                labels = teacher_labels(
                    self.trainer.teacher,
                    model,
                    [_branch(data, place) for place in shard],
                    self.trainer.shared_vocab,
                    args.teacher_top_k,
                    args.kd_temperature,
                    args.rollout_batch_tokens,
                    lambda rows, tokens: bar.update(rows),
                )
                self._cache.add({place.key: found for place, found in zip(shard, labels, strict=True)})
        processes.wait()
        self._take_in_others()
        if self.trainer.preemption.agreed():
            self.trainer.leave_between_steps("the teacher's labels so far are kept")

    def _bar(self, what: Sequence, title: str, unit: str) -> tqdm:
        hidden = self.trainer.args.disable_tqdm or not self.trainer.is_local_process_zero()
        return tqdm(what, desc=title, unit=unit, leave=False, dynamic_ncols=True, disable=hidden)

    def _take_in_others(self) -> None:
        """Makes the labels that any process has this one's too."""
        if not self.trainer.processes.share_files:
            self.trainer.processes.hand_over(self._cache.folder, SHARDS)
        self._cache.refresh()


def _shards(places: Sequence[_Place]) -> Iterator[list[_Place]]:
    shard, labels = [], 0
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
