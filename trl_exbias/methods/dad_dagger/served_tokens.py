"""Whether a server's token ids mean what the student's do."""

import logging
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...core.errors import UsageError
from ...core.json_server import JsonServer


logger = logging.getLogger(__name__)

#: Answers of a server that cannot say it: another kind of server, or one without a tokenizer.
_CANNOT = (400, 404, 405, 422, 500, 501)


def check_tokens(server: JsonServer, model: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Has the server spell out all of the student's token ids, in one request; warns where it cannot.

    Raises:
        ValueError: with the first token that differs.
    """
    ids = list(range(len(tokenizer)))

    def theirs(ids: list[int]) -> Any:
        answer = server.post("/detokenize", {"model": model, "tokens": ids}, accept=_CANNOT)
        return answer.json().get("prompt") if answer.is_success else None

    if theirs(ids[:1]) is None:
        logger.warning(
            f"The teacher's server at {server.base_url} cannot say what its tokens are (`/detokenize`), so that was not checked: "
            "its tokenizer must be the student's."
        )
        return
    while theirs(ids) != tokenizer.decode(ids):
        if len(ids) == 1:
            raise UsageError(
                "Student and teacher need the same tokenizer: a distribution over one vocabulary says nothing about another. "
                f"Token {ids[0]}, for one, is {tokenizer.decode(ids)!r} for the student and {theirs(ids)!r} for the teacher's "
                f"server at {server.base_url}. Serve a teacher of the same family."
            )
        first = ids[: len(ids) // 2]
        ids = first if theirs(first) != tokenizer.decode(first) else ids[len(ids) // 2 :]
