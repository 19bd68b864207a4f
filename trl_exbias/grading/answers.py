"""Finding the final answer in what a model wrote."""

import re
from decimal import Decimal


# openai/grade-school-math, `dataset.py`.
_GSM8K_ANSWER = re.compile(r"#### (\-?[0-9\.\,]+)")
_BARE_NUMBER = re.compile(r"\$?(-?\$?[0-9][0-9.,]*)")
_NUMBER = re.compile(r"(?:(?<![\w.)])([-−]))?(?:\\?\$\s?(-)?)?((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
_CUE = re.compile(r"answer\b(?:\s+is\b|\s*[:=])", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)(?:\s*(?=\{)|\s+(?=[^\s{]))")


def gsm8k_answer(text: str) -> str | None:
    """
    GSM8K's official answer of a solution: the number after the first `####`, commas removed; `None` where there is none.

    As the data set's authors extract it, quirks included: `"#### 42."` is `"42."`, and `"#### $42"` has no answer.
    """
    found = _GSM8K_ANSWER.search(text)
    return found.group(1).strip().replace(",", "") if found else None


def gsm8k_gold(answer: str) -> str | None:
    """The gold number of a GSM8K row, from its whole answer (`"… #### 1,234"`) or bare (`"1,234"`); `None` if neither."""
    if "####" in answer:
        return gsm8k_answer(answer)
    bare = _BARE_NUMBER.fullmatch(answer.strip())
    return bare.group(1).replace(",", "").replace("$", "") if bare else None


def flexible_answer(text: str) -> Decimal | None:
    r"""
    The final number of a solution that was not told to write `####`: the first of these that the text has,

    1. the last number in the last `\boxed{…}`;
    2. the first number after the first `####`;
    3. the first number after the last "answer is", "answer:" or "answer =", on that line;
    4. the last number.

    Thousands commas, `$` and units are dropped. Only plain numbers are read: a box with a `\frac` has no answer here.
    """
    boxed = boxed_answer(text)
    if boxed is not None:
        numbers = [] if r"\frac" in boxed else _numbers(boxed.replace("{,}", ",").replace(r"\!", ""))
        return numbers[-1] if numbers else None
    if "####" in text:
        numbers = _numbers(text.partition("####")[2])
        return numbers[0] if numbers else None
    cues = list(_CUE.finditer(text))
    numbers = _numbers(text[cues[-1].end() :].lstrip().partition("\n")[0]) if cues else []
    if numbers:
        return numbers[0]
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def boxed_answer(text: str) -> str | None:
    r"""
    What stands in the last `\boxed{…}` (or `\fbox{…}`), braces balanced; `None` where no box is whole.

    In `\boxed 5` it is what comes before the next space or `$`.
    """
    # In one pass, since a model that repeats itself opens thousands; a text that was cut may end in an open one.
    open_braces: list[int] = []
    last, content = -1, None
    boxes = {match.end() for match in _BOX.finditer(text)}
    for match in re.finditer(r"\\[\\{}]|[{}]", text):
        if match[0] == "{":
            open_braces.append(match.start())
        elif match[0] == "}" and open_braces:
            start = open_braces.pop()
            if start in boxes and start > last:
                last, content = start, text[start + 1 : match.start()]
    bare = max((start for start in boxes if text[start] != "{"), default=-1)
    return re.split(r"[\s$]", text[bare:], maxsplit=1)[0] if bare > last else content


def _numbers(text: str) -> list[Decimal]:
    return [
        Decimal(("-" if before or after else "") + digits.replace(",", ""))
        for before, after, digits in _NUMBER.findall(text)
    ]
