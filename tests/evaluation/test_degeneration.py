"""Repetition, variety and length against obvious implementations."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_exbias.evaluation.degeneration import degeneration, distinct_n, distinct_shares, rep_n
from trl_exbias.evaluation.figures import paired_difference

from ..reference import degeneration as reference


ROWS = st.lists(st.integers(0, 5), max_size=40)


def texts(num_rows: int, vocab_size: int, seed: int = 0) -> dict[str, list[int]]:
    draw = random.Random(seed)
    return {str(i): draw.choices(range(vocab_size), k=draw.randint(10, 40)) for i in range(num_rows)}


@settings(deadline=None, max_examples=60)
@given(tokens=ROWS, n=st.integers(1, 4))
def test_rep_n_equals_the_reference(tokens, n):
    if len(tokens) < n:
        assert rep_n(tokens, n) is None
    else:
        assert rep_n(tokens, n) == pytest.approx(reference.rep_n(tokens, n))


def test_rep_n_of_known_texts():
    assert rep_n([1, 2, 3, 4], 2) == 0
    assert rep_n([7] * 5, 4) == pytest.approx(1 / 2)
    assert rep_n([1, 2, 1, 2, 1, 2], 2) == pytest.approx(1 - 2 / 5)
    assert rep_n([], 1) is None


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(ROWS, min_size=1, max_size=6), n=st.integers(1, 3))
def test_distinct_n_equals_the_reference_and_its_shares_add_up_to_it(rows, n):
    shares = distinct_shares({str(i): row for i, row in enumerate(rows)}, n)
    if not any(len(row) >= n for row in rows):
        assert distinct_n(rows, n) is None and set(shares.values()) == {None}
    else:
        assert distinct_n(rows, n) == pytest.approx(reference.distinct_n(rows, n))
        assert np.mean(list(shares.values())) == pytest.approx(reference.distinct_n(rows, n))


def test_the_interval_of_distinct_n_is_the_jackknifes():
    rows = texts(60, vocab_size=50)
    figure = degeneration(rows)["distinct_2"]
    error = reference.jackknife_error(list(rows.values()), 2)
    assert figure.mean == pytest.approx(reference.distinct_n(list(rows.values()), 2))
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_a_degenerate_model_is_told_from_a_sound_one():
    sound = texts(30, vocab_size=500)
    stuck = {prompt: (row[:5] * 10)[: len(row)] for prompt, row in sound.items()}
    one, other = degeneration(sound), degeneration(stuck)
    for name in ("rep_2", "rep_3", "rep_4"):
        assert paired_difference(other[name], one[name]).low > 0.2
        assert one[name].higher_is_better is False
    for name in ("distinct_1", "distinct_2"):
        assert paired_difference(other[name], one[name]).high < -0.1
        assert one[name].higher_is_better is True


def test_lengths_and_rates():
    completions = {"a": [1, 2, 3, 9], "b": [1, 2, 9, 9], "c": [9], "d": [5, 9, 5]}
    references = {"a": [1, 2, 3, 4, 5, 6, 9], "b": [9], "c": [1, 9]}
    figures = degeneration(
        completions, references, {"a": False, "b": False, "c": False, "d": True}, (9,), {"tokenizer": "bytes"}
    )
    assert figures["length"].per_prompt == {"a": 3, "b": 2, "c": 0, "d": 3}
    assert figures["length_ratio"].per_prompt == {"a": 0.5, "c": 0.0}
    assert figures["length_ratio"].missing == 2, "no reference, and one without a token"
    assert figures["empty_rate"].mean == 0.25
    assert figures["truncation_rate"].mean == 0.25
    assert (figures["rep_4"].n, figures["rep_4"].missing) == (0, 4)
    assert {figure.settings["tokenizer"] for figure in figures.values()} == {"bytes"}
    assert figures["rep_3"].settings["n"] == 3


def test_what_was_not_given_is_not_measured():
    assert not {"length_ratio", "truncation_rate"} & set(degeneration({"a": [1, 2]}))
    with pytest.raises(ValueError, match="`truncated` lacks 1 of 2 completions, among them 'b'"):
        degeneration({"a": [1], "b": [2]}, truncated={"a": True})
