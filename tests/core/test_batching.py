import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_exbias.core.batching import run_in_batches, token_batches


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_every_row_is_in_one_batch_within_the_budget(lengths, budget):
    batches = token_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget


@given(st.lists(st.integers(1, 900), max_size=200), st.integers(2048, 16384))
def test_a_batch_that_keeps_a_device_busy_has_little_padding(lengths, budget):
    for batch in token_batches(lengths, budget, max_padding=0.05):
        of_batch = [lengths[row] for row in batch]
        slots = max(of_batch) * len(batch)
        if slots - max(of_batch) >= 2048:  # it was large enough before its last row
            assert sum(of_batch) >= 0.95 * slots


def test_the_longest_batch_comes_first():
    assert token_batches([3, 10, 4, 9], 20) == [[1, 3], [2, 0]]


def test_running_out_of_memory_halves_the_batch_and_runs_every_row(caplog):
    seen = []

    def run(rows):
        if len(rows) > 3:
            raise torch.OutOfMemoryError("no")
        seen.append(rows)

    with caplog.at_level(logging.WARNING):
        budget = run_in_batches(run, [10] * 16, 160)
    assert sorted(row for rows in seen for row in rows) == list(range(16))
    assert max(map(len, seen)) == 2, "16, 8, 4, then 2 rows at once"
    assert budget == 20
    assert "Out of memory with 16 sequences" in caplog.text


def test_a_single_row_that_does_not_fit_is_an_error_that_says_what_to_do():
    def run(rows):
        raise torch.OutOfMemoryError("no")

    with pytest.raises(RuntimeError, match="single sequence of 7 tokens .* Shorten `max_length`"):
        run_in_batches(run, [7, 7], 100)


def test_other_errors_pass_through():
    def run(rows):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_in_batches(run, [1], 10)
