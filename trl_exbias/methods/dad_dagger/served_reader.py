"""Asking a teacher's server for the labels of branches, and for more tokens where some of them are not the student's."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ...core.json_server import JsonServer
from ...core.soft_labels import soft_label_key
from .journal import Journal
from .label_form import Content, LabelForm
from .matching import check_lengths
from .served_connection import COMPLETIONS, TeacherServerError, as_json, request_for_labels, unusable
from .served_labels import BadAnswer, TooFew, labels_of


class ServedReader:
    """
    Works out labels by asking a server; a [`Reader`]. What has been answered is in a journal until its shard is written.

    Args:
        server ([`JsonServer`]): The open connection.
        model (`str`): The teacher's name there.
        positions (`int`, *optional*): Tokens of the longest context with its branch.
        form ([`LabelForm`]): What is kept.
        stop (`Callable[[], bool]`): Whether the run was told to go: no more is asked then.
    """

    def __init__(
        self, server: JsonServer, model: str, positions: int | None, form: LabelForm, stop: Callable[[], bool]
    ):
        self.server, self.model, self.positions, self.form, self.stop = server, model, positions, form, stop
        self._journals: dict[Path, Journal] = {}

    def __call__(
        self, folder: Path, contents: list[Content], done: Callable[[int], object]
    ) -> list[dict[str, torch.Tensor]] | None:
        """
        The labels of some contents; `None` if the run was told to go before all were there.

        Raises:
            TeacherServerError: if the server cannot be reached, or its answer cannot be used.
            ValueError: for a context with its branch that is too long for it.
        """
        if folder in self._journals:
            self._journals.pop(folder).forget()  # the shard before this one is written
        journal = self._journals[folder] = Journal(folder)
        try:
            return self._labels(contents, journal, done)
        except BadAnswer as error:
            raise unusable(self.server.base_url, error) from None
        except TeacherServerError as error:
            raise TeacherServerError(
                f"{error} The labels so far are kept: continue with `--resume_from_checkpoint`."
            ) from None

    def forget(self) -> None:
        """All shards have been written."""
        for journal in self._journals.values():
            journal.forget()

    def _labels(
        self, contents: list[Content], journal: Journal, done: Callable[[int], object]
    ) -> list[dict[str, torch.Tensor]] | None:
        top_k = self.form.top_k
        assert top_k is not None, "the configuration asks for it"
        entries: list[dict[str, torch.Tensor]] = [{} for _ in contents]
        tokens = [[*context, *branch.input_ids] for context, branch in contents]
        check_lengths(self.positions, [len(each) for each in tokens])
        asked = dict.fromkeys(range(len(contents)), top_k)
        while asked:
            more: dict[int, int] = {}
            for row, answer in self._ask({row: (tokens[row], k) for row, k in asked.items()}):
                context, branch = contents[row]
                places = [len(context) + i for i, label in enumerate(branch.labels) if label != -100]
                try:
                    entries[row] = labels_of(answer, tokens[row], places, asked[row], top_k, self.form.vocab_size)
                except TooFew as lack:
                    more[row] = asked[row] + lack.missing
                    continue
                journal.add(soft_label_key(context, branch), entries[row])
                done(1)
            if self.stop():
                return None
            asked = more
        return entries

    def _ask(self, prompts: dict[int, tuple[list[int], int]]) -> Iterator[tuple[int, Any]]:
        bodies = [request_for_labels(self.model, tokens, k) for tokens, k in prompts.values()]
        rows = list(prompts)
        for place, answer in self.server.post_all(COMPLETIONS, bodies, self.stop):
            yield rows[place], as_json(answer)
