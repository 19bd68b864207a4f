"""Answers of judges on the disk: nothing is asked, or paid, twice."""

import logging
from pathlib import Path

from ...core.errors import UsageError
from ...core.json_lines import append_record, read_records
from .requests import JudgeAnswer


logger = logging.getLogger(__name__)


class AnswerCache:
    """
    Answers by the key of their question, one line of JSON each, written as they come.

    A line that cannot be read (the last one, of a process that was killed while it wrote) is left out: its question is
    asked again. Processes may share a file.

    Args:
        path (`Path`, *optional*): The file; made with the first answer. Without one, answers last as long as the object.

    Raises:
        ValueError: if `path` is a folder.
    """

    def __init__(self, path: Path | None = None):
        self.path = None if path is None else Path(path)
        self._answers: dict[str, JudgeAnswer] = {}
        if self.path is not None and self.path.is_dir():
            raise UsageError(
                f"The cache of answers {self.path} is a folder; give a file, e.g. {self.path / 'judge.jsonl'}."
            )
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> JudgeAnswer | None:
        return self._answers.get(key)

    def add(self, key: str, answer: JudgeAnswer, model: str, template: str) -> None:
        """Keeps an answer; it is on its way to the disk when this returns. `model` and `template` are for the reader."""
        self._answers[key] = answer
        if self.path is None:
            return
        record = {"key": key, "model": model, "template": template, "answer": answer.as_dict()}
        append_record(self.path, record)

    def _read(self, path: Path) -> None:
        unreadable = 0
        for record in read_records(path):
            try:
                self._answers.setdefault(record["key"], JudgeAnswer.from_dict(record["answer"]))
            except (ValueError, KeyError, TypeError):
                unreadable += 1
        if unreadable:
            logger.warning(f"{path}: {unreadable} unreadable lines; their questions are asked again.")
