import numpy as np
import pytest
import torch

from trl_exbias.evaluation import exposure_bias, exposure_bias_from, perplexity
from trl_exbias.evaluation.bootstrap import bootstrap_interval

from ..reference import exposure_bias as reference
from ..tiny import VOCAB_SIZE, tiny_model


SMALL = 4


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen2", vocab_size=SMALL, seed=1, pad_token_id=None)


@pytest.fixture(scope="module")
def teacher():
    return tiny_model("qwen2", vocab_size=SMALL, seed=2, pad_token_id=None)


CONTEXTS, HORIZONS = [[1, 2, 3]], [[0, 3, 1]]


def test_free_running_and_excess_error_against_enumeration(model, teacher):
    """All 1 + 4 + 16 prefixes; the interval of the estimate is that of 5,000 samples."""
    exact = reference.expected(model, CONTEXTS[0], HORIZONS[0], SMALL, teacher)
    num_samples = 5_000
    found = exposure_bias_from(model, CONTEXTS, HORIZONS, num_samples, seed=3, teacher=teacher)
    spread = 5 * max(abs(v) for v in exact["free_running"]) / num_samples**0.5
    assert found.free_running == pytest.approx(exact["free_running"], abs=spread)
    excess = [own - gold for own, gold in zip(exact["own"], exact["gold"], strict=True)]
    assert found.excess_error == pytest.approx(excess, abs=spread)
    accumulated = 100 * np.cumsum(excess) / np.cumsum(exact["gold"])
    assert found.accumulated_excess_error == pytest.approx(
        accumulated.tolist(), abs=100 * 3 * spread / exact["gold"][0]
    )


def test_the_gap_is_exactly_0_at_step_1(model):
    found = exposure_bias(model, [[0, 1, 2, 3] * 4], context_length=3, horizon=3, num_samples=3)
    assert found.gap[0] == 0.0
    assert found.intervals["gap"][0] == (0.0, 0.0)
    assert any(value != 0 for value in found.gap[1:])


def test_a_model_that_is_its_own_teacher_has_no_excess_error(model):
    found = exposure_bias(model, [[0, 1, 2, 3] * 4], 3, 3, num_samples=2, teacher=model)
    assert found.excess_error == pytest.approx([0, 0, 0], abs=1e-6)
    assert found.accumulated_excess_error == pytest.approx([0, 0, 0], abs=1e-3)


def test_a_model_padded_beyond_its_teacher_runs_on_tokens_that_both_have():
    padded, teacher = tiny_model(vocab_size=VOCAB_SIZE + 200), tiny_model(seed=7)
    measured = exposure_bias(padded, [list(range(40))], 8, 6, num_samples=4, seed=0, teacher=teacher)
    assert len(measured.excess_error) == 6


def test_teacher_forced_is_the_plain_cross_entropy(model):
    document = [0, 1, 2, 3, 3, 1, 0, 2]
    found = exposure_bias(model, [document], context_length=3, horizon=2, num_samples=1, stride=2)
    expected = np.zeros(2)
    for start in (0, 2):
        for step in range(2):
            t = start + 3 + step
            expected[step] -= float(reference.distribution(model, document[start:t])[document[t]].log()) / 2
    assert found.teacher_forced == pytest.approx(expected.tolist(), rel=1e-4)
    assert found.num_starts == 2 and found.num_tokens == 4


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "gpt_neo", "bloom"])
def test_batches_and_other_contexts_change_nothing(architecture):
    model = tiny_model(architecture, vocab_size=50)
    generator = np.random.default_rng(0)
    contexts = [generator.integers(50, size=n).tolist() for n in (3, 7, 7, 5)]
    horizons = [generator.integers(50, size=n).tolist() for n in (4, 2, 4, 1)]
    whole = exposure_bias_from(model, contexts, horizons, num_samples=2, seed=1)
    single = exposure_bias_from(model, contexts, horizons, num_samples=2, seed=1, max_batch_tokens=1)
    for name in ("teacher_forced", "free_running"):
        assert getattr(whole, name) == pytest.approx(getattr(single, name), rel=1e-4)
    assert whole.num_tokens == 11


def test_totals_are_token_means_with_intervals(model):
    found = exposure_bias(model, [[0, 1, 2, 3] * 8], 3, 3, num_samples=2)
    assert found.totals["gap"].mean == pytest.approx(np.mean(found.gap), rel=1e-6)
    assert found.totals["free_running"].low <= found.totals["free_running"].mean <= found.totals["free_running"].high
    assert found.totals["free_running"].mean - found.totals["teacher_forced"].mean == pytest.approx(
        found.totals["gap"].mean, rel=1e-6
    )


def test_training_state_is_left_as_it_was(model):
    model.train()
    exposure_bias(model, [[0, 1, 2, 3] * 2], 3, 2, num_samples=1)
    assert model.training
    model.eval()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "`horizon` must be at least 1"),
        ({"context_length": 20}, "No document has the 22 tokens"),
        ({"num_samples": 0}, "`num_samples` must be at least 1"),
    ],
)
def test_impossible_measurements_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        exposure_bias(model, [[0, 1, 2, 3]], **{"context_length": 2, "horizon": 2, **options})


def test_perplexity_against_a_loop(model):
    documents = [[0, 1, 2, 3, 3, 1, 0, 2], [1, 1], [2, 3, 0, 1, 2]]
    found = perplexity(model, documents, context_length=3)
    nats = reference.perplexity_nats(model, documents, 3)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.num_tokens == 7
    assert found.perplexity == pytest.approx(2**found.bits) == pytest.approx(np.exp(nats), rel=1e-5)
    assert found.bits_per_byte(14) == pytest.approx(found.bits / 2)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = bootstrap_interval(generator.exponential(size=60), resamples=400, seed=seed)
        hits += low <= 1.0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_a_weighted_interval_resamples_whole_units():
    values = np.array([[1.0, np.nan], [3.0, 5.0], [2.0, 5.0]])
    low, high = bootstrap_interval(values, (~np.isnan(values)).astype(float))
    assert low[1] == high[1] == 5.0
    assert 1.0 <= low[0] < high[0] <= 3.0


def test_own_samples_are_drawn_from_the_model(model):
    """The second step's free-running CE over many samples is the mixture over the first token's distribution."""
    torch.manual_seed(0)
    exact = reference.expected(model, CONTEXTS[0], HORIZONS[0], SMALL)
    few = exposure_bias_from(model, CONTEXTS * 500, HORIZONS * 500, num_samples=4, seed=9)
    assert few.free_running[1] == pytest.approx(exact["free_running"][1], abs=0.05 * exact["free_running"][1] + 0.05)
    low, high = few.intervals["free_running"][2]
    assert low - 0.05 <= exact["free_running"][2] <= high + 0.05
