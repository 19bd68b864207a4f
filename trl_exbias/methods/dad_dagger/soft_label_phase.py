"""Works out the teacher's labels of the branches that have none on disk yet, between two phases of training."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...core.branches import TEACHER
from ...core.joint_dataset import JointDataset, labelled
from ...core.soft_labels import soft_label_key
from ...core.tensor_cache import TensorCache
from .filling import Filler
from .journal import recover
from .label_form import LabelForm, Reader
from .pieces import Missing, Piece, Pieces
from .served_teacher import ServedTeacher
from .teacher import Teacher


class SoftLabelPhase:
    """
    The soft labels of a run.

    Args:
        teachers (`list` of [`Teacher`] or [`ServedTeacher`]):
            Whose labels. If there are several, each is loaded only while it reads, and reads the rows with its place in `TEACHER`.
        form ([`LabelForm`]): What is kept of them.
        folder (`Path`): Where they are kept, each teacher's in a folder of its own.
        log (`Callable`): Takes metrics.
        filler ([`Filler`]): Shares the work.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher | ServedTeacher],
        form: LabelForm,
        folder: Path,
        log: Callable[[dict[str, float]], None],
        filler: Filler,
    ):
        own = len(teachers) > 1
        self._parts = {
            place: _OneTeacher(teacher, _pieces_of(place if own else None), form, folder, filler)
            for place, teacher in enumerate(teachers)
        }
        self.log = log

    def run(self, data: JointDataset) -> dict[int, TensorCache]:
        """The caches by teacher, once they have the labels of every branch of `data`; a teacher is loaded only if some are missing."""
        started = time.perf_counter()
        places = {*data.gold.unique(TEACHER)} if TEACHER in data.gold.column_names else {0}
        caches, counts = {}, Counter[str]()
        for place in sorted(places):
            caches[place], missing = self._parts[place].run(data)
            counts.update({"teacher/scored": len(missing.places), **missing.metrics("teacher")})
        self.log({**counts, "seconds/teacher": time.perf_counter() - started})
        return caches


class _OneTeacher:
    """A teacher, and the labels that it has given."""

    def __init__(self, teacher: Teacher | ServedTeacher, pieces: Pieces, form: LabelForm, folder: Path, filler: Filler):
        self.teacher, self.pieces, self.form, self.folder, self.filler = teacher, pieces, form, folder, filler
        self._cache: TensorCache | None = None

    def run(self, data: JointDataset) -> tuple[TensorCache, Missing]:
        """The cache, once it has the labels of its rows, and what it lacked before."""
        if self._cache is None:
            # Which folder is the teacher's follows from its weights, and its LM head is needed in any case.
            with self.teacher.reading(self.form) as read:
                cache = self._cache = self._open()
                missing = self.filler.missing(cache, data, self.pieces)
                self._fill(cache, data, missing, read)
            return cache, missing
        cache = self._cache
        missing = self.filler.missing(cache, data, self.pieces)
        if missing.places:
            with self.teacher.reading(self.form) as read:
                self._fill(cache, data, missing, read)
        return cache, missing

    def _open(self) -> TensorCache:
        folder = self.folder / self.form.folder(self.teacher.identity)
        self.teacher.check_folder(folder)
        cache, processes = TensorCache(folder, "soft labels"), self.filler.processes()
        if processes.writes_files:
            recover(cache)
        processes.wait()
        return cache

    def _fill(self, cache: TensorCache, data: JointDataset, missing: Missing, read: Reader) -> None:
        self.filler.fill(cache, data, self.pieces, missing, partial(read, cache.folder))


def _pieces_of(place: int | None) -> Pieces:
    """The branches of all rows, or of those of the teacher at a place."""

    def pieces(row: dict[str, Any]) -> Iterator[Piece]:
        if place is not None and row[TEACHER] != place:
            return
        for context_ids, branch in labelled(row):
            labels = sum(label != -100 for label in branch.labels)
            content = context_ids, branch
            yield Piece(soft_label_key(*content), content, len(context_ids) + len(branch.input_ids), labels)

    return Pieces(pieces, "teacher's labels")
