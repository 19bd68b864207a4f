"""Which teacher stands at an address: the name of its model, its positions, and what it says of a few tokens."""

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ...core.errors import UsageError
from ...core.files import write_atomically
from ...core.json_server import JsonServer
from .served_connection import COMPLETIONS, TeacherServerError, as_json, request_for_labels
from .served_labels import TooFew, labels_of, own_log_probs


_TOKENS = 32
#: Mean absolute difference (nats) that rounding, and another number of requests at once, explain in a probe's log-probabilities.
_TOLERANCE = 0.1
_FILE = "teacher.json"


def find_model(server: JsonServer, base_url: str, name: str | None) -> tuple[str, int | None]:
    """
    The model that is the teacher, and the tokens of its longest context with a branch; `None` where the server does not say.

    Args:
        name (`str`, *optional*): The model's name. Default: the only one that is served.

    Raises:
        TeacherServerError: if the server does not say which models it serves.
        ValueError: if it serves none, others, or several and no name is given.
    """
    try:
        served = {entry["id"]: entry for entry in server.get("/v1/models").json()["data"]}
    except (KeyError, TypeError, ValueError):
        raise TeacherServerError(
            f"{base_url} does not say which models it serves (`/v1/models`): is it the address of a `vllm serve`?"
        ) from None
    if not served:
        raise UsageError(f"The teacher's server at {base_url} serves no model.")
    names = ", ".join(served)
    if name is None and len(served) != 1:
        raise UsageError(
            f"The teacher's server at {base_url} serves several models ({names}): say which one is the teacher with "
            "`teacher_model_name_or_path`."
        )
    name = name or next(iter(served))
    if name not in served:
        raise UsageError(
            f"The teacher's server at {base_url} does not serve {name!r} (`teacher_model_name_or_path`); it serves {names}."
        )
    # An adapter's entry has no length: its base's counts. One token is drawn after the prompt.
    lengths = [entry["max_model_len"] for entry in (served[name], *served.values()) if entry.get("max_model_len")]
    return name, lengths[0] - 1 if lengths else None


@dataclass(frozen=True)
class Probe:
    """
    What a served model says of a few tokens: other weights say something else.

    Args:
        model (`str`): Its name.
        tokens (`list[int]`): A prompt.
        log_probs (`list[float]`): The log-probability of each of its tokens but the first.
    """

    model: str
    tokens: list[int]
    log_probs: list[float]

    @classmethod
    def of(cls, server: JsonServer, model: str, k: int, vocab_size: int) -> "Probe":
        """
        Asks for labels of tokens from all over the vocabulary.

        Raises:
            BadAnswer: if the answer has no labels.
        """
        tokens = [*range(0, vocab_size, max(1, vocab_size // _TOKENS))][:_TOKENS]
        answer = as_json(server.post(COMPLETIONS, request_for_labels(model, tokens, k)))
        # More than k where some of them are padding: what is asked for is then not known before.
        with contextlib.suppress(TooFew):
            labels_of(answer, tokens, range(1, len(tokens)), k, k, vocab_size)
        return cls(model, tokens, own_log_probs(answer, tokens))

    def remember(self, folder: Path, base_url: str) -> None:
        """
        Writes what was said next to the labels; compares it, where that is there already.

        Raises:
            TeacherServerError: if other weights are served under the name.
        """
        path = folder / _FILE
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(asdict(self)).encode())
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["tokens"] != self.tokens:
            return
        pairs = list(zip(before["log_probs"], self.log_probs, strict=True))
        difference = sum(abs(then - now) for then, now in pairs) / len(pairs)
        # Not `>`: weights that give NaN are wrong too.
        if not difference <= _TOLERANCE:
            raise TeacherServerError(
                f"The teacher's server at {base_url} serves other weights under the name {self.model!r} than those whose labels "
                f"are in {folder}: log-probabilities of {len(pairs)} tokens are {difference:.3g} nats apart on average. Serve the "
                "same weights, or set another `soft_label_dir`."
            )
