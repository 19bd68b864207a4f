import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from trl_exbias.evaluation.bootstrap import bootstrap_interval
from trl_exbias.evaluation.figures import paired_difference
from trl_exbias.evaluation.judging import Judged, length_adjusted_win_rate
from trl_exbias.evaluation.judging.length_adjusted import fit, linearised_win_rate


def synthetic(n, theta, phi, seed, ties=0.0):
    """Differences in length and verdicts of a judge with known parameters."""
    generator = np.random.default_rng(seed)
    differences = np.round(generator.normal(30, 120, n))
    chance = 1 / (1 + np.exp(-theta - phi * np.tanh(differences / differences.std(ddof=1))))
    wins = (generator.random(n) < chance).astype(float)
    return differences, np.where(generator.random(n) < ties, 0.5, wins)


def judged(differences, wins):
    items = [Judged(str(i), "p", "x" * int(500 + d), "x" * 500) for i, d in enumerate(differences)]
    return items, {str(i): float(win) for i, win in enumerate(wins)}


def test_known_parameters_are_found():
    differences, wins = synthetic(200_000, 0.4, -1.5, seed=0)
    theta, phi = fit(np.tanh(differences / differences.std(ddof=1)), wins)
    assert (theta, phi) == pytest.approx((0.4, -1.5), abs=0.03)


def test_the_adjustment_undoes_a_judges_taste_for_length():
    """Equal models, one of them longer: the plain win rate is fooled."""
    differences, wins = synthetic(4000, 0.0, 2.0, seed=1)
    figure = length_adjusted_win_rate(*judged(differences, wins))
    assert wins.mean() > 0.54
    assert figure.low < 0.5 < figure.high and figure.high - figure.low < 0.06
    assert figure.n == 4000 and figure.name == "length_adjusted_win_rate"


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("ties", [0.0, 0.3])
def test_the_fit_is_scikit_learns(c, ties):
    """A tie is half a win and half a loss; the intercept is not penalised."""
    differences, wins = synthetic(150, 0.7, 1.2, seed=2, ties=ties)
    term = np.tanh(differences / differences.std(ddof=1))
    model = LogisticRegression(C=c, tol=1e-12, max_iter=10_000)
    model.fit(np.tile(term, 2)[:, None], np.repeat([1, 0], 150), sample_weight=np.concatenate([wins, 1 - wins]))
    assert fit(term, wins, c) == pytest.approx((model.intercept_[0], model.coef_[0, 0]), abs=1e-5)


def test_the_fit_is_alpaca_evals():
    glm = pytest.importorskip("alpaca_eval.metrics.glm_winrate", exc_type=ImportError)
    import pandas as pd

    differences, wins = synthetic(400, 0.5, 0.9, seed=3, ties=0.2)
    term = np.tanh(differences / differences.std(ddof=1))
    data = pd.DataFrame({"term": term, "one": 1.0, "preference": wins})
    model = glm.fit_LogisticRegressionCV(data, "preference", n_splits=0, C=1e6, tol=1e-10, max_iter=10_000)
    assert fit(term, wins, 1e6) == pytest.approx(model.coef_[0][::-1], abs=1e-3)


def test_the_mean_of_the_prompts_is_the_figure():
    differences, wins = synthetic(300, 0.3, 1.0, seed=4)
    theta, _ = fit(np.tanh(differences / differences.std(ddof=1)), wins)
    figure = length_adjusted_win_rate(*judged(differences, wins))
    assert figure.mean == pytest.approx(1 / (1 + np.exp(-theta)), abs=1e-9)
    assert np.mean(list(figure.per_prompt.values())) == pytest.approx(figure.mean)


def test_the_interval_is_that_of_refitting():
    """Against a bootstrap that fits every resample again."""
    differences, wins = synthetic(400, 0.3, 1.0, seed=5)
    pulls = linearised_win_rate(differences, wins)
    generator = np.random.default_rng(0)
    rates = []
    for _ in range(400):
        drawn = generator.integers(400, size=400)
        rates.append(linearised_win_rate(differences[drawn], wins[drawn]).mean())
    assert bootstrap_interval(pulls) == pytest.approx(np.quantile(rates, [0.025, 0.975]), abs=0.012)


def test_two_models_are_compared_by_prompt():
    differences, wins = synthetic(500, 0.0, 0.5, seed=6)
    better = np.where(np.random.default_rng(7).random(500) < 0.3, 1.0, wins)
    one, other = (length_adjusted_win_rate(*judged(differences, w)) for w in (better, wins))
    difference = paired_difference(one, other)
    assert difference.mean == pytest.approx(one.mean - other.mean) and difference.low > 0


@pytest.mark.parametrize(
    ("differences", "wins", "expected"),
    [
        ([1, 5, -3], [1, 1, 1], 1.0),
        ([1, 5, -3], [0, 0, 0], 0.0),
        ([1, 5, -3], [0.5, 0.5, 0.5], 0.5),
        ([7, 7, 7, 7], [1, 1, 1, 0], 0.75),
        ([3], [1], 1.0),
        ([3], [0.5], 0.5),
    ],
)
def test_edges(differences, wins, expected):
    figure = length_adjusted_win_rate(*judged(differences, wins))
    assert figure.mean == pytest.approx(expected)
    assert 0 <= figure.low <= figure.mean + 1e-9 and figure.mean - 1e-9 <= figure.high <= 1


def test_wins_that_length_alone_explains():
    figure = length_adjusted_win_rate(*judged([-40, -30, -20, 20, 30, 40], [0, 0, 0, 1, 1, 1]))
    assert figure.mean == pytest.approx(0.5) and np.isfinite(list(figure.per_prompt.values())).all()


def test_missing_verdicts_are_left_out():
    items, verdicts = judged([10, -20, 30, -40], [1, 0, 1, 0])
    figure = length_adjusted_win_rate(items, {**verdicts, "1": None})
    assert (figure.n, figure.missing) == (3, 1) and "1" not in figure.per_prompt
    none = length_adjusted_win_rate(items, dict.fromkeys(verdicts))
    assert none.n == 0 and none.missing == 4 and np.isnan(none.mean)
