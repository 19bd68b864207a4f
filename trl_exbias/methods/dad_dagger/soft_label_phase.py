"""Works out the teacher's labels of the branches that have none on disk yet, between two phases of training."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...core.branches import Branch
from ...core.joint_dataset import JointDataset, labelled
from ...core.soft_labels import soft_label_key
from ...core.tensor_cache import TensorCache
from .filling import Filler, Piece, Pieces
from .teacher import Teacher, teacher_labels


@dataclass(frozen=True)
class Labelling:
    """
    How a teacher's labels are worked out.

    Args:
        teacher ([`Teacher`]): Loaded only while it reads.
        vocab_size (`int`): Tokens that student and teacher have in common.
        top_k (`int`, *optional*): Keep this many probabilities instead of hidden states.
        temperature (`float`): Temperature of the probabilities that are kept.
        batch_tokens (`int`): Tokens that it reads at once.
    """

    teacher: Teacher
    vocab_size: int
    top_k: int | None
    temperature: float
    batch_tokens: int

    @property
    def name(self) -> str:
        """The folder's identity: labels of other weights, or in another form, are others."""
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
        filler ([`Filler`]): Shares the work.
    """

    def __init__(self, labelling: Labelling, folder: Path, log: Callable[[dict[str, float]], None], filler: Filler):
        self.labelling, self.folder, self.log, self.filler = labelling, folder, log, filler
        self._cache: TensorCache | None = None

    def run(self, data: JointDataset) -> TensorCache:
        """The cache, once it has the labels of every branch of `data`; the teacher is loaded only if some are missing."""
        started, teacher = time.perf_counter(), self.labelling.teacher
        if self._cache is None:
            # Which folder is the teacher's follows from its weights, and its LM head is needed in any case.
            with teacher.loaded() as model:
                self._cache = TensorCache(self.folder / self.labelling.name, "soft labels")
                missing = self.filler.missing(self._cache, data, _LABELLED)
                self.filler.fill(self._cache, data, _LABELLED, missing, partial(self._label, model))
        else:
            missing = self.filler.missing(self._cache, data, _LABELLED)
            if missing.places:
                with teacher.loaded() as model:
                    self.filler.fill(self._cache, data, _LABELLED, missing, partial(self._label, model))
        seconds = time.perf_counter() - started
        self.log({"teacher/scored": len(missing.places), **missing.metrics("teacher"), "seconds/teacher": seconds})
        return self._cache

    def _label(
        self, model: torch.nn.Module, rows: list[tuple[list[int], Branch]], done: Callable[[int], object]
    ) -> list[dict[str, torch.Tensor]]:
        how = self.labelling
        return teacher_labels(
            how.teacher.head,
            model,
            rows,
            how.vocab_size,
            how.top_k,
            how.temperature,
            how.batch_tokens,
            lambda number, tokens: done(number),
        )


def _pieces(row: dict[str, Any]) -> Iterator[Piece]:
    for context_ids, branch in labelled(row):
        labels = sum(label != -100 for label in branch.labels)
        content = context_ids, branch
        yield Piece(soft_label_key(*content), content, len(context_ids) + len(branch.input_ids), labels)


_LABELLED = Pieces(_pieces, "teacher's labels")
