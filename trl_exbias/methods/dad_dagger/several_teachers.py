"""Several teachers by name: each row of the data names its own."""

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ...core.branches import TEACHER, TEACHER_NAME
from ...core.errors import UsageError, did_you_mean
from .teacher import Teacher


if TYPE_CHECKING:
    from .served_teacher import ServedTeacher


class SeveralTeachers:
    """
    Teachers of which one at a time is loaded.

    Args:
        teachers (`Mapping[str, Teacher]`): By name.
    """

    #: Their labels are k tokens, which no LM head has to read.
    head = None

    def __init__(self, teachers: Mapping[str, Teacher]):
        self.teachers = dict(teachers)

    @property
    def positions(self) -> int | None:
        """Tokens of the longest text that all of them read; `None` for no limit."""
        return min((limit for each in self.teachers.values() if (limit := each.positions) is not None), default=None)

    def check_student(self, tokenizer: PreTrainedTokenizerBase, top_k: int | None) -> None:
        """Raises a `ValueError` where token ids of one of them mean something else than the student's."""
        for each in self.teachers.values():
            each.check_student(tokenizer, top_k)


def each_of(teacher: "Teacher | ServedTeacher | SeveralTeachers") -> "list[Teacher | ServedTeacher]":
    """The teachers that there are, in the order of their places."""
    return [*teacher.teachers.values()] if isinstance(teacher, SeveralTeachers) else [teacher]


def by_name(teachers: Any) -> dict[str, str]:
    """
    The setting `teachers` as a mapping; it may still be JSON.

    Raises:
        ValueError: if it is none of names to models.
    """
    try:
        found = json.loads(teachers) if isinstance(teachers, str) else teachers
    except ValueError:
        found = None
    if (
        not isinstance(found, dict)
        or not found
        or not all(isinstance(part, str) for pair in found.items() for part in pair)
    ):
        raise UsageError(
            "`teachers` must be a mapping of names to models, such as {maths: path/of/one, code: path/of/another}, got "
            f"{teachers!r}."
        )
    return found


def check_names(dataset: Any, names: Iterable[str], name: str) -> None:
    """
    Refuses training data whose rows do not each name a teacher.

    Args:
        dataset: Other than a [`~datasets.Dataset`] it is not looked at.
        name (`str`): What a message calls it.

    Raises:
        ValueError: naming the first row, and the teachers that there are.
    """
    known = list(names)
    if not isinstance(dataset, Dataset):
        return
    if TEACHER_NAME not in dataset.column_names:
        raise UsageError(
            f"`teachers` needs a column `{TEACHER_NAME}` in the {name}, in which each row names its own ({', '.join(known)}); its "
            f"columns are {', '.join(dataset.column_names)}."
        )
    wrong = [(row, value) for row, value in enumerate(dataset[TEACHER_NAME]) if value not in known]
    if wrong:
        row, value = wrong[0]
        more = f", and {len(wrong) - 1} more rows name one that is not there" if len(wrong) > 1 else ""
        raise UsageError(
            f"Row {row} of the {name} names the teacher {value!r}{more}. `teachers` has {', '.join(known)}."
            f"{did_you_mean(value, known) if isinstance(value, str) else ''}"
        )


def with_teachers(cut: Dataset, document: str, rows: Dataset, names: Iterable[str]) -> Dataset:
    """
    Trajectories with the place of their teacher's name in a column of ours.

    Args:
        cut (`datasets.Dataset`): Trajectories; their column `document` has the row that each was cut from.
        rows (`datasets.Dataset`): What they were cut from.
    """
    places = {name: place for place, name in enumerate(names)}
    of_rows = np.array([places[name] for name in rows[TEACHER_NAME]])
    return cut.add_column(TEACHER, of_rows[np.asarray(cut[document])])
