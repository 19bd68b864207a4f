"""The win rate that would be, were completions as long as what they are compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..figures import Figure
from .requests import Judged


C = 100.0


def length_adjusted_win_rate(
    items: Sequence[Judged], verdicts: Mapping[str, float | None], *, settings: Mapping[str, Any] | None = None
) -> Figure:
    r"""
    Win rate at equal length, by a logistic fit of the verdicts on the difference in length:

    $$ p(\text{win}_i) = \operatorname{sigmoid}\bigl(\theta + \phi \tanh(\Delta_i / \sigma)\bigr), \qquad
       \text{length-adjusted win rate} = \operatorname{sigmoid}(\theta) $$

    with Δ the completion's length less the reference's, in characters, and σ the standard deviation of Δ. θ and φ minimise the
    cross-entropy with the verdicts (a tie is a verdict of ½) plus `φ² / (2 C)`, `C = 100`, which matters only where length
    alone separates wins from losses.

    This is the length term of AlpacaEval 2.0's length-controlled win rate (Dubois et al. 2024) without its term for
    the difficulty of AlpacaEval's own prompts, so not that number: see [`alpaca_win_rate`] for it.

    The interval and the comparison of two models stand on the estimate linearised by prompt: the value of a prompt in
    `per_prompt` is the figure plus the prompt's pull on it, and their mean is the figure.

    Args:
        items (`Sequence[Judged]`): What was judged.
        verdicts (`Mapping[str, float | None]`): 1, ½, 0 or `None` by id, as [`win_rate`]'s `per_prompt`.
    """
    name = "length_adjusted_win_rate"
    settings = {**(settings or {}), "length": "characters", "C": C}
    judged = [item for item in items if verdicts.get(item.id) is not None]
    values: dict[str, float | None] = {item.id: None for item in items}
    if judged:
        lengths = np.array([len(item.completion) - len(item.reference) for item in judged], dtype=float)
        wins = np.array([verdicts[item.id] for item in judged], dtype=float)
        pulls = linearised_win_rate(lengths, wins)
        values.update(zip((item.id for item in judged), pulls, strict=True))
    figure = Figure.over_prompts(name, values, settings=settings)
    return replace(figure, low=max(figure.low, 0.0), high=min(figure.high, 1.0)) if judged else figure


def linearised_win_rate(length_differences: np.ndarray, wins: np.ndarray, c: float = C) -> np.ndarray:
    """`sigmoid(θ)` plus each prompt's pull on it, shape `(prompts,)`; their mean is `sigmoid(θ)`."""
    if len(set(wins)) == 1 and wins[0] in (0.0, 1.0):
        return wins  # θ is infinite.
    deviation = length_differences.std(ddof=1) if len(wins) > 1 else 0.0
    term = np.tanh(length_differences / deviation) if deviation > 0 else np.zeros_like(length_differences)
    theta, phi = fit(term, wins, c)
    predicted, rate = _sigmoid(theta + phi * term), _sigmoid(theta)
    design = np.stack([np.ones_like(term), term], axis=1)  # (prompts, 2)
    # The penalty's share goes to all prompts alike, so that the pulls sum to zero, as gradients do at the optimum.
    gradients = design * (wins - predicted)[:, None] - np.array([0.0, phi / c / len(wins)])
    pulls = gradients @ np.linalg.inv(_hessian(design, predicted, c))[0] * len(wins)
    return rate + rate * (1 - rate) * pulls


def fit(term: np.ndarray, wins: np.ndarray, c: float = C, steps: int = 100) -> tuple[float, float]:
    """θ and φ of `sigmoid(θ + φ · term)` by Newton's method, with `φ² / (2 c)` added to the cross-entropy's sum."""
    design = np.stack([np.ones_like(term), term], axis=1)
    penalty = np.array([0.0, 1 / c])
    weights = np.zeros(2)
    for _ in range(steps):
        predicted = _sigmoid(design @ weights)
        gradient = design.T @ (predicted - wins) + penalty * weights
        step = np.linalg.solve(_hessian(design, predicted, c), gradient)
        # Far from the optimum a full step can overshoot.
        size, before = 1.0, _objective(design, wins, weights, penalty)
        while size > 1e-6 and _objective(design, wins, weights - size * step, penalty) > before:
            size /= 2
        weights = weights - size * step
        if np.abs(step).max() < 1e-10:
            break
    return float(weights[0]), float(weights[1])


def _objective(design: np.ndarray, wins: np.ndarray, weights: np.ndarray, penalty: np.ndarray) -> float:
    logits = design @ weights
    return float(np.sum(np.logaddexp(0, logits) - wins * logits) + (penalty * weights**2).sum() / 2)


def _hessian(design: np.ndarray, predicted: np.ndarray, c: float) -> np.ndarray:
    return (design * (predicted * (1 - predicted))[:, None]).T @ design + np.diag([0.0, 1 / c])


def _sigmoid(x: Any) -> Any:
    return 0.5 * (1 + np.tanh(x / 2))
