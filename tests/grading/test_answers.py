"""Final answers in text: official strings, free text, boxes."""

import json
import time
from decimal import Decimal
from pathlib import Path

import pytest

from trl_exbias.grading.answers import boxed_answer, flexible_answer, gsm8k_answer, gsm8k_gold


DATA = Path(__file__).parents[3] / "shared" / "data"


def rows(name: str) -> list[dict]:
    """Rows of a real data set, where it lies next to the repository."""
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"../shared/data/{name} is not here")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She makes 9 * 2 = $<<9*2=18>>18 every day at the farmer's market.\n#### 18", "18"),
        ("#### 70000", "70000"),
        ("#### 1,234,567", "1234567"),
        ("#### -12", "-12"),
        ("#### 2.50", "2.50"),
        ("#### 18\n#### 20", "18"),
        # The quirks of the official expression are kept.
        ("#### 42.", "42."),
        ("#### $42", None),
        ("####42", None),
        ("The answer is 42.", None),
        ("", None),
    ],
)
def test_the_official_answer(text, answer):
    assert gsm8k_answer(text) == answer


@pytest.mark.parametrize(
    ("gold", "number"),
    [
        ("It is 2+1=<<2+1=3>>3.\n#### 3", "3"),
        ("#### 1,234", "1234"),
        ("42", "42"),
        (" 1,234\n", "1234"),
        ("-3", "-3"),
        ("$5", "5"),
        ("no number", None),
        ("#### none", None),
        ("", None),
    ],
)
def test_gold_is_a_whole_answer_or_a_number(gold, number):
    assert gsm8k_gold(gold) == number


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 42.", "42"),
        ("First 3, then 4. The answer is $1,234.50 in all, for 7 people.", "1234.50"),
        ("So the final answer is: **-7**", "-7"),
        ("Answer: -$5", "-5"),
        ("The answer is 3.\nWait, no. The answer is 4 apples out of 9.", "4"),
        (r"We get \boxed{42}, which is 6 times 7.", "42"),
        (r"We get $\boxed{\$1{,}234}$.", "1234"),
        (r"Then $\boxed{x = 1,\!080}$", "1080"),
        (r"\boxed{\text{no number}} 5", None),
        (r"\boxed{\frac{84}{2}}", None),
        ("#### 42.\nNext problem: 5", "42"),
        ("#### $42", "42"),
        ("#### none", None),
        ("She has 3 + 4 = 7 apples", "7"),
        ("She paid 10-5 dollars", "5"),
        ("- 5 apples", "5"),
        ("It grows by .5", "0.5"),
        ("It grows by 25%.", "25"),
        ("It falls to −3 degrees", "-3"),
        ("18,19", "19"),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_the_flexible_answer(text, answer):
    assert flexible_answer(text) == (None if answer is None else Decimal(answer))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so $\boxed{5}$.", "5"),
        (
            r"\boxed{\frac{1}{2}} and then \boxed{\left\{ x \mid x^{2} > 1 \right\}}.",
            r"\left\{ x \mid x^{2} > 1 \right\}",
        ),
        (r"\boxed{\left\{ 3 \right.}", r"\left\{ 3 \right."),
        (r"\boxed {7}", "7"),
        (r"\fbox{B}", "B"),
        (r"$\boxed 5$", "5"),
        (r"$\boxed 5 cm$", "5"),
        (r"\boxed{1}, and so \boxed{2", "1"),
        (r"\boxed{1 + \boxed{2}}", "2"),
        (r"\boxed{1} \boxed 2 \boxed{3", "2"),
        (r"} \boxed{4} {", "4"),
        (r"\boxed{", None),
        (r"\boxed", None),
        ("no box", None),
    ],
)
def test_the_last_whole_box(text, answer):
    assert boxed_answer(text) == answer


def test_a_text_of_boxes_alone_is_read_in_no_time():
    started = time.perf_counter()
    assert boxed_answer("\\boxed{" * 50_000) is None
    assert boxed_answer("\\boxed{" * 50_000 + "1" + "}" * 50_000) == "1"
    assert boxed_answer("\\boxed 1 " * 50_000) == "1"
    assert time.perf_counter() - started < 2


def test_the_boxes_of_all_math_500_solutions():
    assert [boxed_answer(row["solution"]) for row in rows("math/math500_test.jsonl")] == [
        row["answer"] for row in rows("math/math500_test.jsonl")
    ]


def test_flexible_and_official_answers_agree_on_gsm8k():
    for row in rows("gsm8k/test.jsonl"):
        assert flexible_answer(row["answer"]) == Decimal(gsm8k_answer(row["answer"]))
