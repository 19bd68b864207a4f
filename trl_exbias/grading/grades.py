r"""Whether a completion's final answer is right: GSM8K and MATH.

A completion in which no answer is found counts as not solved, as in the benchmarks, but under a name of its own; a gold
answer that cannot be read, or a comparison that takes too long, is a missing value and never an error of the model.
"""

import logging
import os
import re
import threading
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any

from ..core.errors import MissingPackageError, UsageError, UsageTypeError
from .answers import boxed_answer, flexible_answer, gsm8k_answer, gsm8k_gold


logger = logging.getLogger(__name__)

#: Ways to grade GSM8K: the authors' exact match after `####`; the final number wherever it stands; math-verify.
GSM8K_METHODS = ("strict", "flexible", "math_verify")
#: For each of math-verify's two steps, reading and comparing.
TIME_LIMIT_SECONDS = 5

# math-verify reads `10\,080` as 10 + 080.
_THIN_SPACE = re.compile(r"(?<=\d)(?:\\[,;:!]|\\ |~)+(?=\d{3}(?!\d))")
_IS_LATEX = re.compile(r"(?<!\\)\$|\\\(|\\\[")


class Outcome(StrEnum):
    """What came of grading one completion."""

    CORRECT = "correct"
    WRONG = "wrong"
    #: The completion has no final answer, or one that cannot be read.
    UNPARSEABLE_ANSWER = "unparseable_answer"
    #: The data set's answer cannot be read: nothing can be said of the completion.
    UNPARSEABLE_GOLD = "unparseable_gold"
    #: Reading or comparing took over `TIME_LIMIT_SECONDS`.
    TIMED_OUT = "timed_out"


@dataclass(frozen=True)
class Grading:
    """
    One completion's grade.

    Args:
        outcome ([`Outcome`]): What came of it.
        answer, gold (`str`, *optional*): What was read from the completion and from the gold answer.
    """

    outcome: Outcome
    answer: str | None = None
    gold: str | None = None

    @property
    def value(self) -> float | None:
        """1 if correct; 0 if wrong or without an answer; `None` where the completion cannot be judged."""
        if self.outcome in (Outcome.UNPARSEABLE_GOLD, Outcome.TIMED_OUT):
            return None
        return float(self.outcome is Outcome.CORRECT)


def grade_gsm8k(completion: str, gold_answer: str, method: str = "strict") -> Grading:
    r"""
    Grades a completion for a GSM8K problem.

    Args:
        completion (`str`): What the model wrote.
        gold_answer (`str`): The row's whole `answer` (`"… #### 42"`) or the number alone.
        method (`str`, *optional*, defaults to `"strict"`):
            `"strict"`: the data set's official exact match: the same string after `#### `, commas removed. `"flexible"`:
            the same number, found as [`flexible_answer`] says, for models that write "The answer is 42." or `\boxed{42}`.
            `"math_verify"`: math-verify's reading of what comes after `####`, or of the whole text where there is none.

    Raises:
        TypeError, ValueError: if an argument is not a string, or the method is unknown.
    """
    _check_strings(completion=completion, gold_answer=gold_answer)
    if method not in GSM8K_METHODS:
        raise UsageError(f"`method={method!r}` is not one of {', '.join(GSM8K_METHODS)}.")
    gold = gsm8k_gold(gold_answer)
    if gold is None:
        return Grading(Outcome.UNPARSEABLE_GOLD)
    if method == "math_verify":
        behind = completion.partition("####")[2].strip().partition("\n")[0] if "####" in completion else completion
        return _math_verify(behind, gold)
    if method == "strict":
        answer = gsm8k_answer(completion)
        equal = answer == gold
    else:
        number, true = flexible_answer(completion), _decimal(gold)
        if true is None:
            return Grading(Outcome.UNPARSEABLE_GOLD, gold=gold)
        answer, equal = (None if number is None else str(number)), number == true
    if answer is None:
        return Grading(Outcome.UNPARSEABLE_ANSWER, gold=gold)
    return Grading(Outcome.CORRECT if equal else Outcome.WRONG, answer, gold)


def grade_math(completion: str, gold_answer: str) -> Grading:
    r"""
    Grades a completion for a MATH problem by math-verify: equal as mathematics, not as strings.

    Args:
        completion (`str`): What the model wrote. A `\boxed{…}` comes first; then "the answer is …", `$…$` and numbers.
        gold_answer (`str`): The answer as LaTeX, bare (`\frac12`), between `$`, or boxed in a whole solution.

    Raises:
        TypeError: if an argument is not a string.
        ImportError: if math-verify is not installed.
    """
    _check_strings(completion=completion, gold_answer=gold_answer)
    boxed = boxed_answer(gold_answer)
    return _math_verify(completion, gold_answer if boxed is None else boxed)


def gsm8k_correct(completion: str, gold_answer: str, method: str = "strict") -> bool:
    """
    Whether a completion solves a GSM8K problem; see [`grade_gsm8k`], which also tells a wrong answer from none.

    Raises:
        ValueError: if the gold answer has no number.
    """
    return _as_bool(grade_gsm8k(completion, gold_answer, method), gold_answer)


def math_correct(completion: str, gold_answer: str) -> bool:
    """
    Whether a completion solves a MATH problem; see [`grade_math`], which also tells a wrong answer from none.

    Raises:
        ValueError: if the gold answer cannot be read as mathematics.
    """
    return _as_bool(grade_math(completion, gold_answer), gold_answer)


def _math_verify(completion: str, gold: str) -> Grading:
    try:
        from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
        from math_verify.errors import TimeoutException
    except ImportError as error:
        raise MissingPackageError("Grading mathematics needs math-verify: `pip install trl-exbias[eval]`.") from error
    limit = _time_limit()
    configs = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]

    def read(text: str) -> list:
        return parse(_THIN_SPACE.sub("", text), configs, parsing_timeout=limit, raise_on_error=True)

    # Bare LaTeX parses to nothing, and between single dollars it may not run over a line.
    wrapped = gold if _IS_LATEX.search(gold) else f"\\boxed{{{gold}}}"
    try:
        golds, _ = _mathematics(read, wrapped)
        if not golds:
            return Grading(Outcome.UNPARSEABLE_GOLD, gold=gold)
        answers, text = _mathematics(read, completion)
        if not answers:
            return Grading(Outcome.UNPARSEABLE_ANSWER, text, gold)
        equal = any(_equal(verify, one, other, limit) for one in golds for other in answers)
    except TimeoutException:
        return Grading(Outcome.TIMED_OUT, gold=gold)
    return Grading(Outcome.CORRECT if equal else Outcome.WRONG, text, gold)


def _mathematics(read: Any, text: str) -> tuple[list, str | None]:
    """What math-verify reads in a text, and the piece of the text that it read, which is there even if unreadable."""
    try:
        found = read(text)
    except Exception as error:  # its parsers raise whatever they like on what is not mathematics
        logger.debug("math-verify cannot read %r: %r", text[:200], error)
        return [], None
    # Never an expression itself as text: a tower of powers takes for ever to write out.
    pieces = [piece for piece in found if isinstance(piece, str)]
    return [piece for piece in found if not isinstance(piece, str)], pieces[0] if pieces else None


def _equal(verify: Any, gold: Any, answer: Any, limit: int | None) -> bool:
    try:
        return verify(gold, answer, timeout_seconds=limit, raise_on_error=True)
    except Exception as error:  # likewise, sympy on what cannot be compared
        logger.debug("math-verify cannot compare: %r", error)
        return False


def _time_limit() -> int | None:
    """math-verify's limit is an alarm signal, which the main thread alone can have, and Windows has not."""
    main = threading.current_thread() is threading.main_thread()
    return TIME_LIMIT_SECONDS if main and os.name == "posix" else None


def _as_bool(grading: Grading, gold_answer: str) -> bool:
    if grading.outcome is Outcome.UNPARSEABLE_GOLD:
        raise UsageError(f"The gold answer {gold_answer[:200]!r} cannot be read, so no completion can be graded by it.")
    if grading.outcome is Outcome.TIMED_OUT:
        logger.warning(f"Grading against {gold_answer[:200]!r} took over {TIME_LIMIT_SECONDS} s; taken as not correct.")
    return grading.value == 1.0


def _check_strings(**texts: Any) -> None:
    for name, text in texts.items():
        if not isinstance(text, str):
            raise UsageTypeError(f"`{name}` must be a string; it is {text!r} ({type(text).__name__}).")


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text)
    except InvalidOperation:
        return None
