"""Degenerate samples are counted as what they are, and a run that has nothing else stops."""

import logging

import pytest

from trl_exbias.loop.degenerate import check_rollouts
from trl_exbias.rollouts import SamplingOptions, StopStrings
from trl_exbias.rollouts.counting import DEGENERATE, EMPTY, LENGTH, REPEATED, TRUNCATED, UNFINISHED, CountingEngine
from trl_exbias.run.errors import DegenerateRolloutsError

from ..tiny import byte_tokenizer


STOP = 0


class Says:
    def __init__(self, responses):
        self.responses = responses

    def sample(self, prompts, options, example_ids=None):
        return self.responses


def rates(responses, stop_token_ids=(STOP,), stop_strings=None, **options) -> dict[str, tuple[float, float]]:
    counted = {}

    def count(name, total, number):
        counted[name] = (total, number)

    engine = CountingEngine(Says(responses), count, **options)
    drawn = engine.sample(
        [[1]] * len(responses), SamplingOptions(stop_token_ids=stop_token_ids, stop_strings=stop_strings)
    )
    assert drawn == responses
    return counted


def test_samples_are_counted_as_what_they_are():
    responses = [[5, 6, 7, STOP], [STOP], [5, 6, 7, 8], [5] * 8 + [STOP], [5] * 8, [5] * 7 + [STOP]]
    wrong = {EMPTY: (1, 6), UNFINISHED: (0, 6), TRUNCATED: (2, 6), REPEATED: (2, 6), DEGENERATE: (4, 6)}
    assert rates(responses) == {**wrong, LENGTH: (4 + 1 + 4 + 9 + 8 + 8, 6)}


def test_a_response_that_broke_off_is_degenerate():
    """One that met the length limit did not break off, and an empty one is empty."""
    responses = [[5, 9, STOP], [5, 6, STOP], [5, 9], [STOP]]
    found = rates(responses, is_unfinished=lambda response: response[-2:-1] == [9] or response == [STOP])
    assert (found[UNFINISHED], found[EMPTY], found[TRUNCATED], found[DEGENERATE]) == ((1, 4), (1, 4), (1, 4), (3, 4))


def test_a_response_that_a_string_ends_is_not_cut_off():
    """The string's own tokens are nothing said, as the stop token is not."""
    tokenizer = byte_tokenizer()
    responses = [tokenizer.encode(text) for text in ("Yes. Q:", "Q:", "Yes.", "Q", "aaaaaaaaQ:")]
    found = rates([*responses, [5, STOP]], stop_strings=StopStrings(tokenizer, ["Q:"]))
    assert found[TRUNCATED] == (2, 6) and found[EMPTY] == (1, 6) and found[REPEATED] == (1, 6)
    assert found[UNFINISHED] == (0, 6) and found[DEGENERATE] == (4, 6)


def test_a_horizon_is_not_cut_off():
    """DaD-DAgger's rollouts have a fixed length: nothing is expected to stop."""
    assert rates([[5, 6, 7], [5, 6, STOP]], ()) == {
        EMPTY: (0, 2),
        UNFINISHED: (0, 2),
        TRUNCATED: (0, 2),
        REPEATED: (0, 2),
        DEGENERATE: (0, 2),
        LENGTH: (6, 2),
    }


def metrics(rate: float) -> dict[str, float]:
    return {EMPTY: 0.0, TRUNCATED: rate, REPEATED: 0.0, DEGENERATE: rate}


def test_the_rate_is_warned_of_and_past_the_threshold_the_run_stops(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        check_rollouts(metrics(0.2), 100, 0.95, tmp_path)
        assert not caplog.records
        check_rollouts(metrics(0.5), 100, 0.95, tmp_path)
    assert "50% of the rollouts" in caplog.text
    with pytest.raises(DegenerateRolloutsError, match=r"96% .* 96% cut off at `max_new_tokens`.*max_degenerate_rate=1"):
        check_rollouts(metrics(0.96), 100, 0.95, tmp_path)
    check_rollouts(metrics(1.0), 100, 1.0, tmp_path)
    check_rollouts(metrics(1.0), 31, 0.95, tmp_path)  # too few to judge by
