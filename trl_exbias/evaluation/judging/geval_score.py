"""The score in a judge's answer, as a number or weighted by the probabilities of the scores it could have given."""

import math
import re
from collections.abc import Sequence

from .template import last_word


_DIGIT = re.compile(r"\W*(\d)\W*")


def read_score(text: str, scale: tuple[int, int]) -> float | None:
    """
    The score that an answer gives, on its scale; `None` where it gives none, one off the scale, or several.

    It is read from lines that hold nothing else: `4`, `Score: 4`, `**Score (1-5):** 4/5`.
    """
    own = last_word(text)
    scores = {float(found[1]) for found in _score_lines(own or "", scale)}
    if len(scores) != 1:
        return None
    score = scores.pop()
    return score if scale[0] <= score <= scale[1] else None


def expected_score(tokens: Sequence[tuple[str, dict[str, float]]], scale: tuple[int, int]) -> float | None:
    r"""
    The expected score, $\sum_s p(s)\, s$ over the scores of the scale (Liu et al. 2023, Eq. 1), with p the probability
    of s as the token in the score's place, scaled to sum to 1 over the scores. `None` where [`read_score`] finds none,
    or there are no probabilities.

    Args:
        tokens (`Sequence[tuple[str, dict[str, float]]]`): As in a [`JudgeAnswer`].
        scale (`tuple[int, int]`): Limits of scores of one digit: more would be several tokens.
    """
    text = "".join(token for token, _ in tokens)
    if read_score(text, scale) is None:
        return None
    place = _score_lines(text, scale)[-1].start(1)
    weights: dict[int, float] = {}
    for token, alternatives in tokens:
        if place < len(token):
            for alternative, logprob in alternatives.items():
                if (digit := _DIGIT.fullmatch(alternative)) and scale[0] <= int(digit[1]) <= scale[1]:
                    weights[int(digit[1])] = weights.get(int(digit[1]), 0.0) + math.exp(logprob)
            break
        place -= len(token)
    total = sum(weights.values())
    return sum(score * weight for score, weight in weights.items()) / total if total > 0 else None


def _score_lines(text: str, scale: tuple[int, int]) -> list[re.Match]:
    low, high = scale
    return list(
        re.finditer(
            rf"^[^\w\n]*(?:(?:score|rating)[^\w\n]*(?:{low}\s*[-–]\s*{high})?[^\w\n]*)?"
            rf"(\d+(?:\.\d+)?)[ \t]*(?:(?:/|out of)[ \t]*{high})?[^\w\n]*$",
            text,
            re.IGNORECASE | re.MULTILINE,
        )
    )
