"""Works out the teacher's labels of the branches that have none on disk yet, between two phases of training."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from ..branches import Branch
from ..joint_dataset import JointDataset, labelled
from ..soft_labels import SHARDS, SoftLabelCache, soft_label_key
from ..teacher import teacher_labels
from .run_directory import SOFT_LABELS


if TYPE_CHECKING:
    from .dad_dagger import DaDDaggerTrainer

logger = logging.getLogger(__name__)

_SHARD_ROWS = 2048


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
                self._score(model, missing)
        else:
            total, missing = self._missing(data)
            if missing:
                with teacher.loaded() as model:
                    self._score(model, missing)
        seconds = time.perf_counter() - started
        self.trainer.log_now(
            {
                "teacher/scored": len(missing),
                "teacher/reused": total - len(missing),
                "teacher/num_tokens": sum(len(context) + len(branch.input_ids) for _, context, branch in missing),
                "seconds/teacher": seconds,
            }
        )
        return self._cache

    def _folder(self) -> Path:
        args, teacher = self.trainer.args, self.trainer.teacher
        form = "hidden" if args.teacher_top_k is None else f"top{args.teacher_top_k}-t{args.kd_temperature:g}"
        root = Path(args.soft_label_dir or Path(args.output_dir) / SOFT_LABELS)
        return root / f"{teacher.fingerprint[:16]}-{form}-v{self.trainer.shared_vocab}"

    def _missing(self, data: JointDataset) -> tuple[int, list[tuple[bytes, list[int], Branch]]]:
        """How many different branches there are, and those without labels, longest first."""
        self._take_in_others()
        self.trainer.processes.wait()  # before anyone adds some: the share of each follows from what is missing now
        seen: set[bytes] = set()
        missing = []
        for i in range(len(data)):
            for context_ids, branch in labelled(data[i]):
                key = soft_label_key(context_ids, branch)
                if key not in seen and key not in self._cache:
                    missing.append((key, context_ids, branch))
                seen.add(key)
        missing.sort(key=lambda row: (-len(row[1]) - len(row[2].input_ids), row[0]))
        return len(seen), missing

    def _score(self, model, missing: Sequence[tuple[bytes, list[int], Branch]]) -> None:
        args, processes = self.trainer.args, self.trainer.processes
        # Longest first, and dealt out one by one: equal shares of all lengths.
        mine = missing[processes.index :: processes.count]
        shards = [mine[start : start + _SHARD_ROWS] for start in range(0, len(mine), _SHARD_ROWS)]
        bar = tqdm(
            total=len(mine),
            desc="Teacher's labels",
            unit="branch",
            leave=False,
            dynamic_ncols=True,
            disable=args.disable_tqdm or not self.trainer.is_local_process_zero(),
        )
        with bar:
            for shard in shards:
                if self.trainer.preemption.asked:
                    break
                labels = teacher_labels(
                    self.trainer.teacher,
                    model,
                    [(context_ids, branch) for _, context_ids, branch in shard],
                    self.trainer.shared_vocab,
                    args.teacher_top_k,
                    args.kd_temperature,
                    args.rollout_batch_tokens,
                    lambda rows, tokens: bar.update(rows),
                )
                self._cache.add({key: found for (key, _, _), found in zip(shard, labels, strict=True)})
        processes.wait()
        self._take_in_others()
        if self.trainer.preemption.agreed():
            self.trainer.leave_between_steps("the teacher's labels so far are kept")

    def _take_in_others(self) -> None:
        """Makes the labels that any process has this one's too."""
        if not self.trainer.processes.share_files:
            self.trainer.processes.hand_over(self._cache.folder, SHARDS)
        self._cache.refresh()
