"""A teacher on a running `vllm serve`, on this machine or another one: asked for its k most probable tokens at each place.

    vllm serve MODEL --max-logprobs 64

Prompts are token ids, never text. The server keeps its weights; nothing is loaded here.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import PreTrainedTokenizerBase

from ...core.errors import ExbiasError, UsageError
from ...core.files import write_atomically
from ...core.json_server import FAILED, JsonServer
from ...core.soft_labels import soft_label_key
from .journal import Journal
from .label_form import Content, LabelForm, Reader
from .served_labels import BadAnswer, TooFew, labels_of, own_log_probs
from .served_tokens import check_tokens
from .teacher import check_lengths


logger = logging.getLogger(__name__)

#: Environment variable with the server's key.
API_KEY = "TEACHER_API_KEY"
#: Seconds for which a server that is not there is waited for: at the start, and once it has been there.
PATIENCE_AT_START, PATIENCE = 30.0, 600.0
_TIMEOUT = 600.0  # seconds without an answer to a request
_PROBE_TOKENS = 32
#: Mean absolute difference (nats) that rounding, and another number of requests at once, explain in a probe's log-probabilities.
_PROBE_TOLERANCE = 0.1
_ABOUT = "teacher.json"
_COMPLETIONS = "/v1/completions"


class TeacherServerError(ExbiasError, RuntimeError):
    """The teacher's server is not there, refuses, or gives what cannot be used; says what to do."""


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
        self._probe: dict[str, Any] = {}

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
        with self._connection(patience) as server:
            self._find_model(server)
            check_tokens(server, self._model, tokenizer)
            step = max(1, len(tokenizer) // _PROBE_TOKENS)
            tokens = [*range(0, len(tokenizer), step)][:_PROBE_TOKENS]
            try:
                answer = _json(server.post(_COMPLETIONS, self._request(tokens, top_k)))
                # More than k where some of them are padding: what is asked for is then not known before.
                with contextlib.suppress(TooFew):
                    labels_of(answer, tokens, range(1, len(tokens)), top_k, top_k, len(tokenizer))
                self._probe = {"model": self._model, "tokens": tokens, "log_probs": own_log_probs(answer, tokens)}
            except BadAnswer as error:
                raise self._unusable(error) from None

    def is_there(self) -> bool:
        """Whether anything answers at the address, tried once."""
        with self._connection(0.0) as server:
            return server.is_there()

    @contextlib.contextmanager
    def reading(self, form: LabelForm) -> Iterator[Reader]:
        """What works out labels, for the length of the block."""
        with self._connection(PATIENCE) as server:
            journals: dict[Path, Journal] = {}
            yield partial(self._labels, server, form, journals)
            # They stay if the run was told to go, or failed.
            if not self.stop():
                for journal in journals.values():
                    journal.forget()

    def check_folder(self, folder: Path) -> None:
        """
        Remembers, next to the labels, what the teacher said of a few tokens; compares, where that is there already.

        Raises:
            TeacherServerError: if other weights are served under the name.
        """
        path = folder / _ABOUT
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(self._probe).encode())
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["tokens"] != self._probe["tokens"]:
            return
        pairs = list(zip(before["log_probs"], self._probe["log_probs"], strict=True))
        difference = sum(abs(then - now) for then, now in pairs) / len(pairs)
        # Not `>`: weights that give NaN are wrong too.
        if not difference <= _PROBE_TOLERANCE:
            raise TeacherServerError(
                f"The teacher's server at {self.base_url} serves other weights under the name {self.name!r} than those whose "
                f"labels are in {folder}: log-probabilities of {len(pairs)} tokens are {difference:.3g} nats apart on average. "
                "Serve the same weights, or set another `soft_label_dir`."
            )

    def _labels(
        self,
        server: JsonServer,
        form: LabelForm,
        journals: dict[Path, Journal],
        folder: Path,
        contents: list[Content],
        done: Callable[[int], object],
    ) -> list[dict[str, torch.Tensor]] | None:
        if folder in journals:
            journals.pop(folder).forget()  # the shard before this one is written
        journal = journals[folder] = Journal(folder)
        assert form.top_k is not None, "the configuration asks for it"
        entries: list[dict[str, torch.Tensor]] = [{} for _ in contents]
        tokens = [[*context, *branch.input_ids] for context, branch in contents]
        check_lengths(self.positions, [len(each) for each in tokens])
        asked = dict.fromkeys(range(len(contents)), form.top_k)
        try:
            while asked:
                more: dict[int, int] = {}
                for row, answer in self._ask(server, {row: (tokens[row], k) for row, k in asked.items()}):
                    context, branch = contents[row]
                    places = [len(context) + i for i, label in enumerate(branch.labels) if label != -100]
                    try:
                        entries[row] = labels_of(answer, tokens[row], places, asked[row], form.top_k, form.vocab_size)
                    except TooFew as lack:
                        more[row] = asked[row] + lack.missing
                        continue
                    journal.add(soft_label_key(context, branch), entries[row])
                    done(1)
                if self.stop():
                    return None
                asked = more
        except BadAnswer as error:
            raise self._unusable(error) from None
        except TeacherServerError as error:
            raise TeacherServerError(
                f"{error} The labels so far are kept: continue with `--resume_from_checkpoint`."
            ) from None
        return entries

    def _ask(self, server: JsonServer, prompts: dict[int, tuple[list[int], int]]) -> Iterator[tuple[int, Any]]:
        bodies = [self._request(tokens, k) for tokens, k in prompts.values()]
        rows = list(prompts)
        for place, answer in server.post_all(_COMPLETIONS, bodies, self.stop):
            yield rows[place], _json(answer)

    def _request(self, tokens: Sequence[int], k: int) -> dict[str, Any]:
        return {
            "model": self._model,
            "prompt": list(tokens),
            "prompt_logprobs": k,
            "return_token_ids": True,
            "max_tokens": 1,
            "temperature": 0.0,
        }

    def _connection(self, patience: float) -> JsonServer:
        return JsonServer(
            self.base_url,
            "The teacher's server",
            API_KEY,
            TeacherServerError,
            timeout=_TIMEOUT,
            patience=patience,
            again=FAILED,
            hint=_hint,
        )

    def _find_model(self, server: JsonServer) -> None:
        try:
            served = {entry["id"]: entry for entry in server.get("/v1/models").json()["data"]}
        except (KeyError, TypeError, ValueError):
            raise TeacherServerError(
                f"{self.base_url} does not say which models it serves (`/v1/models`): is it the address of a `vllm serve`?"
            ) from None
        if not served:
            raise UsageError(f"The teacher's server at {self.base_url} serves no model.")
        names = ", ".join(served)
        if self.name is None and len(served) != 1:
            raise UsageError(
                f"The teacher's server at {self.base_url} serves several models ({names}): say which one is the teacher with "
                "`teacher_model_name_or_path`."
            )
        self.name = self.name or next(iter(served))
        if self.name not in served:
            raise UsageError(
                f"The teacher's server at {self.base_url} does not serve {self.name!r} (`teacher_model_name_or_path`); it "
                f"serves {names}."
            )
        # An adapter's entry has no length: its base's counts. One token is drawn after the prompt: no server takes none.
        lengths = [
            entry["max_model_len"] for entry in (served[self.name], *served.values()) if entry.get("max_model_len")
        ]
        self.positions = lengths[0] - 1 if lengths else None

    def _unusable(self, error: BadAnswer) -> TeacherServerError:
        return TeacherServerError(f"The answer of the teacher's server at {self.base_url} cannot be used: {error}.")


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        raise BadAnswer("it is not JSON") from None


def _hint(path: str, answer: httpx.Response | None) -> str:
    if answer is None:
        return " Is it running there (`teacher_server_base_url`)?"
    if answer.status_code == 400 and "logprobs" in answer.text:
        return " Start it with a larger `--max-logprobs`, or lower `teacher_top_k`."
    if answer.status_code == 404:
        return " Is it the address of a `vllm serve`?"
    return ""
