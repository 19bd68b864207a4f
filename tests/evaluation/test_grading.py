"""Graders on strings of the benchmarks' authors, on what models write, and on the gold files themselves."""

import logging
import threading
import time

import pytest

from trl_exbias.evaluation.grading import (
    Grading,
    Outcome,
    accuracy,
    grade_gsm8k,
    grade_math,
    gsm8k_correct,
    math_correct,
    outcome_counts,
)

from ..grading.test_answers import rows


pytest.importorskip("math_verify")


@pytest.mark.parametrize(
    ("completion", "gold", "correct"),
    [
        ("She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18", "Janet sells 9 eggs.\n#### 18", True),
        ("#### 18", "18", True),
        ("#### 1,234", "1234", True),
        ("#### 1234", "So 1,234 in all.\n#### 1,234", True),
        ("#### -5", "-5", True),
        ("#### 5", "-5", False),
        ("#### 2.5", "2.5", True),
        ("#### 17", "18", False),
        ("18 is not #### 17", "18", False),
        # Strict is strict.
        ("The answer is 18.", "18", False),
        ("#### 18.0", "18", False),
        ("", "18", False),
    ],
)
def test_gsm8k_strictly(completion, gold, correct):
    assert gsm8k_correct(completion, gold) is correct


@pytest.mark.parametrize("method", ["flexible", "math_verify"])
@pytest.mark.parametrize(
    ("completion", "gold", "correct"),
    [
        ("9 * 2 = 18.\n#### 18", "#### 18", True),
        ("The answer is 18.", "18", True),
        ("The answer is 18.0.", "18", True),
        ("She sells 9 eggs at $2 each and makes $18 every day. The answer is $18.", "18", True),
        (r"9 eggs at 2 dollars: \boxed{18}", "18", True),
        (r"Therefore she makes $\boxed{\$1,234}$ in all.", "1,234", True),
        ("The answer is 1,234 dollars.", "1234", True),
        ("#### 42 apples", "42", True),
        ("#### $42", "42", True),
        ("the final answer is -3", "-3", True),
        ("the final answer is 3", "-3", False),
        ("The answer is 17.", "18", False),
        (r"18 would be too much: \boxed{17}", "18", False),
    ],
)
def test_gsm8k_in_free_text(completion, gold, correct, method):
    assert gsm8k_correct(completion, gold, method) is correct


@pytest.mark.parametrize("method", ["strict", "flexible", "math_verify"])
def test_no_answer_is_told_from_a_wrong_one(method):
    assert grade_gsm8k("I do not know.", "18", method).outcome is Outcome.UNPARSEABLE_ANSWER
    assert grade_gsm8k("#### 17", "18", method) == Grading(Outcome.WRONG, "17", "18")
    assert grade_gsm8k("#### 18", "18", method) == Grading(Outcome.CORRECT, "18", "18")
    assert grade_gsm8k("#### 18", "nothing", method).outcome is Outcome.UNPARSEABLE_GOLD


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac12"),
        (r"so $\boxed{\frac12}$.", r"\frac{1}{2}"),
        (r"\boxed{\dfrac{1}{2}}", r"$\frac{1}{2}$"),
        ("The answer is 0.5.", r"\frac{1}{2}"),
        ("The answer is $-3$.", "-3"),
        (r"First \boxed{3} seems right, but in the end it is $\boxed{2}$, as $7 - 5$ shows.", "2"),
        (r"\boxed{10080}", r"10,\!080"),
        (r"\boxed{10\,080}", "10080"),
        (r"\boxed{10{,}080}", "10,080"),
        (r"$\boxed{11111111100}$", r"11,\! 111,\! 111,\! 100"),
        (r"\boxed{32348}", r"\$32,\!348"),
        (r"\boxed{5}", r"5 \text{ cm}"),
        (r"\boxed{15 \text{ cm}^2}", r"15\mbox{ cm}^2"),
        (r"\boxed{10}", r"10^\circ"),
        ("It is 28 percent.", r"28\%"),
        (r"\boxed{(-\infty, 2) \cup (3, \infty)}", r"(-\infty,2)\cup(3,\infty)"),
        (r"\boxed{[2,3]}", r"x \in [2,3]"),
        (r"\boxed{\{2,1\}}", r"\{1,2\}"),
        (r"$\boxed{1}$ and $\boxed{2}$", "1,2"),
        (r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}}", "\\begin{pmatrix} 1 & 2 \\\\\n 3 & 4 \\end{pmatrix}"),
        (r"\boxed{2(p - q)}", "2p - 2q"),
        (r"\boxed{x = 5}", "5"),
        (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}"),
        (r"\boxed{C}", r"\text{(C)}"),
        (r"\boxed{3}", r"Then $\boxed{2}$ is too small, so the answer is $\boxed{3}$."),
    ],
)
def test_math_equal(completion, gold):
    assert math_correct(completion, gold) is True


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        (r"\boxed{\frac{1}{3}}", r"\frac12"),
        (r"\boxed{3}", "-3"),
        (r"\boxed{[2,3)}", "[2,3]"),
        (r"\boxed{(2, 1)}", "(1, 2)"),
        (r"\boxed{\{1,2,3\}}", r"\{1,2\}"),
        (r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
        (r"\boxed{\text{Carla}}", r"\text{Evelyn}"),
        ("I do not know.", "5"),
        ("", "5"),
    ],
)
def test_math_unequal(completion, gold):
    assert math_correct(completion, gold) is False


def test_what_math_verify_cannot_read_is_no_wrong_answer():
    assert grade_math("I do not know.", "5") == Grading(Outcome.UNPARSEABLE_ANSWER, None, "5")
    assert grade_math(r"\boxed{???}", "5").outcome is Outcome.UNPARSEABLE_ANSWER
    assert grade_math(r"\boxed{5}", "???") == Grading(Outcome.UNPARSEABLE_GOLD, None, "???")
    for grade in (math_correct, gsm8k_correct):
        with pytest.raises(ValueError, match="gold answer '' cannot be read"):
            grade(r"\boxed{5}", "")


def test_a_computation_without_end_is_cut_off(monkeypatch, caplog):
    monkeypatch.setattr("trl_exbias.grading.grades.TIME_LIMIT_SECONDS", 1)
    started = time.perf_counter()
    grading = grade_math(r"\boxed{9^{9^{9^9}}}", "5")
    assert time.perf_counter() - started < 3
    assert grading.outcome is Outcome.TIMED_OUT and grading.value is None
    with caplog.at_level(logging.WARNING):
        assert math_correct(r"\boxed{(10^9)!}", "5") is False
    assert "took over 1 s" in caplog.text


def test_what_looks_like_mathematics_without_end_is_read():
    for text in ("\\boxed{" * 500 + "1" + "}" * 500, "$" * 20000, "\\" * 5000, "{" * 5000, "1 + " * 3000):
        started = time.perf_counter()
        assert grade_math(text, "7").outcome is not Outcome.CORRECT
        assert time.perf_counter() - started < 12


def test_other_threads_grade_too():
    """Where there can be no alarm: without a limit, but right (math-verify itself raises there)."""
    graded = []

    def grade():
        graded.extend([grade_math(r"\boxed{\frac12}", "0.5"), grade_gsm8k("#### 18", "18", "math_verify")])

    thread = threading.Thread(target=grade)
    thread.start()
    thread.join()
    assert [grading.outcome for grading in graded] == [Outcome.CORRECT] * 2


def test_wrong_types_and_methods_are_refused():
    with pytest.raises(TypeError, match="`gold_answer` must be a string; it is 42"):
        gsm8k_correct("#### 42", 42)
    with pytest.raises(ValueError, match="`method='fuzzy'` is not one of strict, flexible, math_verify"):
        gsm8k_correct("#### 42", "42", method="fuzzy")


def test_accuracy_leaves_out_what_cannot_be_judged():
    right, wrong, none = Grading(Outcome.CORRECT), Grading(Outcome.WRONG), Grading(Outcome.UNPARSEABLE_ANSWER)
    broken, late = Grading(Outcome.UNPARSEABLE_GOLD), Grading(Outcome.TIMED_OUT)
    gradings = {"a": [right, right, wrong], "b": [none, right, late], "c": [broken] * 3}
    figure = accuracy("gsm8k", gradings, {"method": "strict"})
    assert figure.per_prompt == {"a": pytest.approx(2 / 3), "b": 0.5}
    assert figure.mean == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert (figure.n, figure.missing, figure.settings) == (2, 1, {"method": "strict"})
    every = [grading for row in gradings.values() for grading in row]
    assert outcome_counts(every) == {
        "correct": 3,
        "wrong": 1,
        "unparseable_answer": 1,
        "unparseable_gold": 3,
        "timed_out": 1,
    }


def test_the_deviation_over_repetitions_is_that_of_the_paper():
    """Cen 2024, Table 4: 14.17, 14.74 and 13.28 are 14.06 ± 0.60."""
    repetitions = [1417, 1474, 1328]
    gradings = {
        str(i): [Grading(Outcome.CORRECT if i < solved else Outcome.WRONG) for solved in repetitions]
        for i in range(10000)
    }
    figure = accuracy("win rate", gradings)
    assert round(100 * figure.mean, 2) == 14.06 and round(100 * figure.std, 2) == 0.60
    assert accuracy("once", {"a": [Grading(Outcome.CORRECT)]}).std is None


@pytest.mark.parametrize("method", ["strict", "flexible", "math_verify"])
def test_the_gsm8k_gold_file_against_itself(method):
    answers = [row["answer"] for row in rows("gsm8k/test.jsonl")]
    wrong = [answer for answer in answers if not gsm8k_correct(answer, answer, method)]
    assert len(answers) == 1319 and not wrong


def test_math_500_solutions_against_their_answers():
    data = rows("math/math500_test.jsonl")
    wrong = [row["answer"] for row in data if not math_correct(row["solution"], row["answer"])]
    assert len(data) == 500 and not wrong


@pytest.mark.slow
def test_the_rest_of_math_solutions_against_their_answers():
    data = rows("math/math_pool1500.jsonl")
    wrong = [row["answer"] for row in data if not math_correct(row["solution"], row["answer"])]
    # Both solutions box two values, of which the data set's answer is the last alone.
    assert len(data) == 1500 and wrong == [r"-\tfrac34", r"\frac{5\pi}{4}"]
