"""Which of two texts a judge prefers, read strictly from the judge's own words."""

import re

from .template import last_word


_DECISION = re.compile(
    r"^[ \t*_#-]*preferred(?:[ \t]+(?:summary|response|answer|text))?[ \t*_]*:[\s*_]*(.*)$",
    re.IGNORECASE | re.MULTILINE,
)
_CHOICE = re.compile(r"[\W_]*(?:(?:summary|response|answer|text)[\W_]+)?([AB])[\W_]*", re.IGNORECASE)


def read_verdict(answer: str) -> str | None:
    """
    `"A"` or `"B"`, or `None` where the answer does not say so plainly.

    An answer decides with a line `Preferred: A` (quotes, bold and "summary A" allowed) at its end. It does not where no
    such line is there, something follows it, it names both, neither or something else, or two such lines disagree. Lines quoted with `>` are
    not the judge's own.
    """
    text = last_word(answer) or ""
    decisions = list(_DECISION.finditer(text))
    choices = {match.group(1).upper() if (match := _CHOICE.fullmatch(found[1])) else None for found in decisions}
    if len(choices) != 1 or text[decisions[-1].end() :].strip(" \t\n*_`"):
        return None
    return choices.pop()
