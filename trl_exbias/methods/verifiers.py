"""What decides whether an answer is kept: a grader, an exact match, a regular expression, or a user's own function."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..chat.answers import reference_text
from ..chat.conversations import normalised
from ..core.errors import UsageError, UsageTypeError
from ..grading.answers import flexible_answer
from ..grading.grades import gsm8k_correct, math_correct
from ..settings.methods import load


#: Says whether an answer is right, from its text, the gold answer's, and the row's columns.
Verifier = Callable[[str, str, dict[str, Any]], bool]

#: Keeps every answer.
NONE = "none"
_REGEX = "regex:"
_CHECKED_ROWS, _SHOWN = 256, 80


def _exact(answer: str, gold: str, row: dict[str, Any]) -> bool:
    return answer.split() == gold.split()


def _same_number(answer: str, gold: str, row: dict[str, Any]) -> bool:
    found = flexible_answer(answer)
    return found is not None and found == flexible_answer(gold)


_NAMED: dict[str, Verifier | None] = {
    NONE: None,
    "exact": _exact,
    "gsm8k": lambda answer, gold, row: gsm8k_correct(answer, gold, "strict"),
    "number": _same_number,
    "math": lambda answer, gold, row: math_correct(answer, gold),
}


def find_verifier(source: str) -> Verifier | None:
    """
    The verifier of a name, `regex:PATTERN`, or `module:function`; `None` where every answer is kept.

    Raises:
        ValueError: if there is none, with what is allowed.
    """
    if source in _NAMED:
        return _NAMED[source]
    if isinstance(source, str) and source.startswith(_REGEX):
        return _matching(source.removeprefix(_REGEX))
    if not isinstance(source, str) or ":" not in source:
        raise UsageError(
            f"`verifier` must be one of {', '.join(_NAMED)}, 'regex:PATTERN', or 'module:function', got {source!r}."
        )
    function = load(source)
    if not callable(function):
        raise UsageError(f"`verifier={source!r}` names a {type(function).__name__}, not a function.")

    def verifies(answer: str, gold: str, row: dict[str, Any]) -> bool:
        found = function(answer, gold, row)
        # A coroutine, or a string such as "no", would count as a yes.
        if not isinstance(found, (bool, np.bool_, int, float)):
            raise UsageTypeError(f"`verifier={source!r}` must return a bool, it returned {found!r}.")
        return bool(found)

    return verifies


def check_verifier(
    source: str, rows: Dataset, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None
) -> None:
    """
    Rejects a verifier that does not accept gold answers: it would accept the policy's by mistake alone.

    Args:
        rows (`datasets.Dataset`): Rows of the training data; the first ones are looked at.

    Raises:
        ValueError: with how many gold answers are not accepted, and the first of them.
    """
    verifies = find_verifier(source)
    if verifies is None:
        return
    refused = []
    looked_at = normalised(rows.select(range(min(_CHECKED_ROWS, len(rows)))))
    for index, row in enumerate(looked_at):
        gold = reference_text(row, tokenizer, chat_template).strip()
        if not accepts(verifies, gold, gold, row):
            refused.append((index, gold))
    # Single rows of a data set may have no answer that can be read: nothing is kept for them.
    if len(refused) > len(looked_at) / 2:
        index, gold = refused[0]
        shown = gold if len(gold) <= _SHOWN else f"…{gold[-_SHOWN:]}"
        raise UsageError(
            f"`verifier={source!r}` accepts {len(looked_at) - len(refused)} of the first {len(looked_at)} gold answers. "
            f"Row {index}, for one, has {shown!r}. Choose another verifier, or bring the answers into the form that it reads."
        )


def accepts(verifies: Verifier, answer: str, gold: str, row: dict[str, Any]) -> bool:
    """Whether a verifier accepts an answer; one that cannot be compared with its gold answer is not accepted."""
    try:
        return verifies(answer, gold, row)
    except UsageTypeError:
        raise
    except UsageError:  # the gold answer cannot be read
        return False


def _matching(pattern: str) -> Verifier:
    """Accepts an answer whose last match (its first group, if there is one) is that of the gold answer."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"`verifier={_REGEX + pattern!r}` is not a regular expression: {error}.") from error

    def last(text: str) -> str | None:
        found = [match[1 if compiled.groups else 0] for match in compiled.finditer(text)]
        return found[-1] if found else None

    def verifies(answer: str, gold: str, row: dict[str, Any]) -> bool:
        found = last(answer)
        return found is not None and found == last(gold)

    return verifies
