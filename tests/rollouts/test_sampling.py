import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from trl_exbias.rollouts import SamplingOptions
from trl_exbias.rollouts.sampling import Prefixes, filter_logits_, penalise_


def kept(logits, **options):
    filtered = filter_logits_(torch.tensor([logits]), SamplingOptions(**options))
    return filtered[0].isfinite().tolist()


def test_top_k_keeps_the_k_most_probable():
    assert kept([1.0, 3.0, 2.0, 0.0], top_k=2) == [False, True, True, False]


def test_top_k_above_the_vocabulary_keeps_all():
    assert all(kept([1.0, 3.0], top_k=50))


def test_top_p_keeps_the_token_that_crosses_the_line():
    """p = 0.5, 0.3, 0.15, 0.05: 0.7 is reached by the second token, 0.5 exactly by the first."""
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert kept(logits, top_p=0.7) == [True, True, False, False]
    assert kept(logits, top_p=0.499) == [True, False, False, False]
    assert kept(logits, top_p=1e-9) == [True, False, False, False]


def test_min_p_is_relative_to_the_most_probable_token_and_comes_first():
    """p = 0.5, 0.25, 0.15, 0.1: half of the first is the second, exactly."""
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log().tolist()
    assert kept(logits, min_p=0.49) == [True, True, False, False]
    assert kept(logits, min_p=0.51) == [True, False, False, False]
    assert kept(logits, min_p=1.0) == [True, False, False, False]
    assert kept(logits, min_p=0.15, temperature=2.0) == [True] * 4
    # Among 0.5 and 0.25 alone, the first is 0.667: enough for 0.6, which it would not be among all four.
    assert kept(logits, min_p=0.49, top_p=0.6) == [True, False, False, False]
    assert kept(logits, top_p=0.6) == [True, True, False, False]


@pytest.mark.parametrize("penalty", [1.7, 0.6])
def test_a_repetition_penalty_is_transformers(penalty):
    """Draws that share a sequence see as much of it as comes before them; tokens that occur twice count once."""
    torch.manual_seed(0)
    logits, sequences, rows, lengths = (
        torch.randn(5, 9),
        {4: [3, 3, 7], 2: [1, 8, 8, 0]},
        [4, 4, 2, 2, 2],
        [1, 3, 1, 3, 4],
    )
    found = logits.clone()
    penalise_(found, Prefixes(sequences, rows, lengths).occurred(slice(0, 5), 9, logits.device), penalty)
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        prefix = torch.tensor([sequences[row][:length]])
        expected = RepetitionPenaltyLogitsProcessor(penalty)(prefix, logits[i : i + 1].clone())
        assert torch.equal(found[i : i + 1], expected)


def test_excluded_tokens_are_gone_before_anything_else():
    assert kept([1.0, 5.0, 2.0], excluded_token_ids=(1,), top_k=1) == [False, False, True]


def test_temperature_divides():
    filtered = filter_logits_(torch.tensor([[1.0, 4.0]]), SamplingOptions(temperature=2.0))
    assert filtered.tolist() == [[0.5, 2.0]]


def test_top_p_acts_on_the_tempered_distribution():
    logits = torch.tensor([0.6, 0.3, 0.1]).log().tolist()
    assert kept(logits, top_p=0.7) == [True, True, False]
    assert kept(logits, top_p=0.7, temperature=0.25) == [True, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "`temperature` must be 0"),
        ({"top_p": 0.0}, r"`top_p` must be in \(0, 1\]"),
        ({"top_p": 1.5}, r"`top_p` must be in \(0, 1\]"),
        ({"top_k": -1}, "`top_k` must be 0"),
        ({"min_p": 1.1}, r"`min_p` must be in \[0, 1\]"),
        ({"repetition_penalty": 0.0}, "`repetition_penalty` must be above 0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be at least 1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SamplingOptions(**options)
