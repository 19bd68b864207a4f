"""Bootstrap intervals over independent units (start positions, prompts)."""

import numpy as np


def bootstrap_interval(
    values: np.ndarray,
    weights: np.ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> np.ndarray:
    """
    Percentile interval of the mean over units, for each column.

    Args:
        values (`np.ndarray` of shape `(units,)` or `(units, columns)`): One row a unit; units are resampled whole.
        weights (`np.ndarray` of the same shape, *optional*): Weight of each value in its column's mean.

    Returns:
        `np.ndarray` of shape `(2,)` or `(2, columns)`: Lower and upper ends.
    """
    flat = values.ndim == 1
    values = values[:, None] if flat else values
    weights = np.ones_like(values) if weights is None else np.reshape(weights, values.shape)
    generator = np.random.default_rng(seed)
    units, means = len(values), []
    weighted = np.where(weights > 0, values, 0.0) * weights
    for start in range(0, resamples, 100):
        # How often each unit is drawn: a matrix product instead of a copy of the data for each resample.
        counts = generator.multinomial(units, np.full(units, 1 / units), size=min(100, resamples - start))
        totals = counts @ weights
        means.append(np.divide(counts @ weighted, totals, out=np.full(totals.shape, np.nan), where=totals > 0))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    interval = np.nanquantile(np.concatenate(means), tails, axis=0)
    return interval[:, 0] if flat else interval
