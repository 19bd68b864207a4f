"""Works out the teacher's labels of the branches that have none on disk yet, between two phases of training."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ...core.joint_dataset import JointDataset, labelled
from ...core.soft_labels import soft_label_key
from ...core.tensor_cache import TensorCache
from .filling import Filler, Missing, Piece, Pieces
from .journal import recover
from .label_form import LabelForm, Reader
from .served_teacher import ServedTeacher
from .teacher import Teacher


class SoftLabelPhase:
    """
    The soft labels of a run.

    Args:
        teacher ([`Teacher`] or [`ServedTeacher`]): Whose labels; loaded only while it reads.
        form ([`LabelForm`]): What is kept of them.
        folder (`Path`): Where they are kept, each teacher's in a folder of its own.
        log (`Callable`): Takes metrics.
        filler ([`Filler`]): Shares the work.
    """

    def __init__(
        self,
        teacher: Teacher | ServedTeacher,
        form: LabelForm,
        folder: Path,
        log: Callable[[dict[str, float]], None],
        filler: Filler,
    ):
        self.teacher, self.form, self.folder, self.log, self.filler = teacher, form, folder, log, filler
        self._cache: TensorCache | None = None

    def run(self, data: JointDataset) -> TensorCache:
        """The cache, once it has the labels of every branch of `data`; the teacher is loaded only if some are missing."""
        started = time.perf_counter()
        if self._cache is None:
            # Which folder is the teacher's follows from its weights, and its LM head is needed in any case.
            with self.teacher.reading(self.form) as read:
                cache = self._cache = self._open()
                missing = self.filler.missing(cache, data, _LABELLED)
                self._fill(cache, data, missing, read)
        else:
            cache = self._cache
            missing = self.filler.missing(cache, data, _LABELLED)
            if missing.places:
                with self.teacher.reading(self.form) as read:
                    self._fill(cache, data, missing, read)
        seconds = time.perf_counter() - started
        self.log({"teacher/scored": len(missing.places), **missing.metrics("teacher"), "seconds/teacher": seconds})
        return cache

    def _open(self) -> TensorCache:
        folder = self.folder / self.form.folder(self.teacher.identity)
        self.teacher.check_folder(folder)
        cache, processes = TensorCache(folder, "soft labels"), self.filler.processes()
        if processes.writes_files:
            recover(cache)
        processes.wait()
        return cache

    def _fill(self, cache: TensorCache, data: JointDataset, missing: Missing, read: Reader) -> None:
        self.filler.fill(cache, data, _LABELLED, missing, partial(read, cache.folder))


def _pieces(row: dict[str, Any]) -> Iterator[Piece]:
    for context_ids, branch in labelled(row):
        labels = sum(label != -100 for label in branch.labels)
        content = context_ids, branch
        yield Piece(soft_label_key(*content), content, len(context_ids) + len(branch.input_ids), labels)


_LABELLED = Pieces(_pieces, "teacher's labels")
