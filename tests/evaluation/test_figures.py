"""Figures and their intervals: they cover as often as they say, pair up by prompt, and refuse what is unlike."""

import json
import math

import numpy as np
import pytest

from trl_exbias.evaluation.bootstrap import bootstrap_interval
from trl_exbias.evaluation.figures import Figure, paired_difference


def by_prompt(values) -> dict[str, float]:
    return {str(i): float(value) for i, value in enumerate(values)}


REPETITIONS = 1000


def coverage(draws: np.ndarray, truth: float) -> float:
    """How often the interval over prompts (rows) holds the truth, over repetitions of the experiment (columns)."""
    low, high = bootstrap_interval(draws)
    return float(((low <= truth) & (truth <= high)).mean())


@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        (lambda generator: generator.normal(0.3, 1, (100, REPETITIONS)), 0.3),
        (lambda generator: generator.random((150, REPETITIONS)) < 0.4, 0.4),  # an accuracy
        (lambda generator: generator.gamma(2, 0.5, (200, REPETITIONS)), 1.0),  # lengths, which have a tail
    ],
    ids=["normal", "accuracy", "skewed"],
)
def test_the_interval_covers_the_truth_as_often_as_it_says(draw, mean):
    draws = draw(np.random.default_rng(0)).astype(float)
    assert 0.92 <= coverage(draws, mean) <= 0.98


def test_the_paired_interval_covers_the_difference():
    generator = np.random.default_rng(1)
    prompts = generator.normal(0, 1, (100, REPETITIONS))
    one, other = (prompts + generator.normal(mean, 0.3, prompts.shape) for mean in (0.1, 0))
    assert 0.92 <= coverage(one - other, 0.1) <= 0.98


def test_a_figures_interval_is_that_interval():
    generator = np.random.default_rng(2)
    one, other = generator.normal(size=(2, 100, 2))
    for column in range(2):
        figures = [Figure.over_prompts("x", by_prompt(values[:, column])) for values in (one, other)]
        assert [figures[0].low, figures[0].high] == pytest.approx(bootstrap_interval(one)[:, column])
        difference = paired_difference(*figures)
        assert [difference.low, difference.high] == pytest.approx(bootstrap_interval(one - other)[:, column])


def test_pairing_narrows_the_interval_where_prompts_matter_more_than_models():
    generator = np.random.default_rng(0)
    prompts = generator.normal(0, 1, 200)
    one = Figure.over_prompts("x", by_prompt(prompts + generator.normal(0.1, 0.1, 200)))
    other = Figure.over_prompts("x", by_prompt(prompts + generator.normal(0.0, 0.1, 200)))
    difference = paired_difference(one, other)
    assert difference.mean == pytest.approx(one.mean - other.mean)
    unpaired = np.hypot(one.high - one.low, other.high - other.low)
    assert difference.high - difference.low < unpaired / 5
    assert difference.low > 0, "seen only by pairing: the figures themselves overlap"
    assert one.low < other.high


def test_an_interval_is_the_same_every_time_and_narrows_with_n():
    values = np.random.default_rng(0).normal(size=400)
    few, many = Figure.over_prompts("x", by_prompt(values[:100])), Figure.over_prompts("x", by_prompt(values))
    assert few == Figure.over_prompts("x", by_prompt(values[:100]))
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(2, rel=0.3)


def test_missing_values_are_not_zeros():
    figure = Figure.over_prompts("win", {"a": 1.0, "b": None, "c": 1.0, "d": 0.0})
    assert figure.mean == pytest.approx(2 / 3)
    assert (figure.n, figure.missing) == (3, 1)
    assert "b" not in figure.per_prompt


def test_a_prompt_that_one_figure_lacks_is_in_neither_side_of_a_difference():
    one = Figure.over_prompts("win", {"a": 1.0, "b": 0.5, "c": 0.0})
    other = Figure.over_prompts("win", {"a": 0.5, "b": None, "c": 0.5, "d": 1.0})
    difference = paired_difference(one, other)
    assert difference.per_prompt == {"a": 0.5, "c": -0.5}
    assert (difference.n, difference.missing) == (2, 2)


def test_a_figure_without_a_value_is_nan_and_no_zero():
    figure = Figure.over_prompts("win", {"a": None})
    assert np.isnan([figure.mean, figure.low, figure.high]).all()
    assert (figure.n, figure.missing) == (0, 1)


def test_unlike_settings_are_refused_by_name():
    one = Figure.over_prompts("rouge_l", {"a": 1.0}, settings={"tokenizer": "default", "seed": 0, "split": "test"})
    other = Figure.over_prompts("rouge_l", {"a": 1.0}, settings={"tokenizer": "unicode", "seed": 0})
    with pytest.raises(
        ValueError, match=r"`split` \('test' and None\), `tokenizer` \('default' and 'unicode'\)"
    ) as error:
        paired_difference(one, other)
    assert "seed" not in str(error.value)
    with pytest.raises(ValueError, match="rouge_l and rouge_1 cannot be compared: they measure different things"):
        paired_difference(one, Figure.over_prompts("rouge_1", {"a": 1.0}, settings=one.settings))


def test_a_figure_goes_through_json():
    figure = Figure.over_prompts("x", {"a": 0.25, "b": None}, settings={"n": 2}, higher_is_better=None, std=0.1)
    assert Figure.from_dict(json.loads(json.dumps(figure.as_dict()))) == figure
    assert str(figure) == "0.25 [0.25, 0.25] ± 0.1"


def test_a_figure_without_any_value_is_valid_json_and_comes_back():
    empty = Figure.over_prompts("win_rate", {"a": None})
    text = json.dumps(empty.as_dict(), allow_nan=False)
    again = Figure.from_dict(json.loads(text))
    assert math.isnan(again.mean) and math.isnan(again.low) and (again.n, again.missing) == (0, 1)
