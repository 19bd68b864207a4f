"""A teacher on a running `vllm serve`, on this machine or another one: asked for its k most probable tokens at each place.

    vllm serve MODEL --max-logprobs 64

Prompts are token ids, never text. The server keeps its weights; nothing is loaded here.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from .label_form import LabelForm, Reader
from .served_connection import connection, unusable
from .served_labels import BadAnswer
from .served_probe import Probe, find_model
from .served_reader import ServedReader
from .served_tokens import check_tokens


#: Seconds for which a server that is not there is waited for: at the start, and once it has been there.
PATIENCE_AT_START, PATIENCE = 30.0, 600.0


class ServedTeacher:
    """
    A teacher that answers at an address.

    Args:
        base_url (`str`): The server's address.
        name (`str`, *optional*): The model's name there. Default: the only one that it serves.
        stop (`Callable[[], bool]`): Whether the run was told to go: no more is asked then.
    """

    #: A whole distribution would need one; k tokens do not.
    head = None

    def __init__(self, base_url: str, name: str | None = None, stop: Callable[[], bool] = lambda: False):
        self.base_url, self.name, self.stop = base_url.rstrip("/").removesuffix("/v1"), name, stop
        #: Tokens of the longest context with its branch; known once the server was asked.
        self.positions: int | None = None
        self._probe: Probe | None = None  # there once the server was asked

    @property
    def identity(self) -> str:
        """Part of the name of its labels' folder. The server may move; what it serves is checked by a probe."""
        return "served-" + hashlib.sha256(json.dumps(self._model).encode()).hexdigest()[:16]

    @property
    def _model(self) -> str:
        assert self.name is not None, "known once the server was asked"
        return self.name

    def check_student(
        self, tokenizer: PreTrainedTokenizerBase, top_k: int | None, patience: float = PATIENCE_AT_START
    ) -> None:
        """
        Asks the server once what it serves, what its tokens are, and for labels of a few tokens.

        Raises:
            TeacherServerError: if it cannot be reached, refuses, or gives no labels.
            ValueError: if it serves another model, or its tokens are not the student's.
        """
        assert top_k is not None, "the configuration asks for it"
        with connection(self.base_url, patience) as server:
            self.name, self.positions = find_model(server, self.base_url, self.name)
            check_tokens(server, self._model, tokenizer)
            try:
                self._probe = Probe.of(server, self._model, top_k, len(tokenizer))
            except BadAnswer as error:
                raise unusable(self.base_url, error) from None

    def is_there(self) -> bool:
        """Whether anything answers at the address, tried once."""
        with connection(self.base_url, 0.0) as server:
            return server.is_there()

    @contextlib.contextmanager
    def reading(self, form: LabelForm) -> Iterator[Reader]:
        """What works out labels, for the length of the block."""
        with connection(self.base_url, PATIENCE) as server:
            reader = ServedReader(server, self._model, self.positions, form, self.stop)
            yield reader
            # The journals stay if the run was told to go, or failed.
            if not self.stop():
                reader.forget()

    def check_folder(self, folder: Path) -> None:
        """
        Remembers, next to the labels, what the teacher said of a few tokens; compares, where that is there already.

        Raises:
            TeacherServerError: if other weights are served under the name.
        """
        assert self._probe is not None, "the server was asked"
        self._probe.remember(folder, self.base_url)
