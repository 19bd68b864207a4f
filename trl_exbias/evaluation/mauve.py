"""MAUVE: how alike the distributions of written and of generated texts are (Pillutla et al., 2021)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .figures import Figure


#: Two buckets of ten.
MIN_PROMPTS = 20
MAX_TEXT_TOKENS = 1024
# The settings of mauve-text, by which its figures are published.
_SEED, _EXPLAINED_VARIANCE, _REDO, _ITERATIONS, _SCALE, _MIXTURES = 25, 0.9, 5, 500, 5, 25


def mauve(
    ids: Sequence[str],
    references: np.ndarray,
    responses: np.ndarray,
    num_buckets: int | None = None,
    settings: dict[str, Any] | None = None,
) -> Figure:
    """
    MAUVE of features: 1 where written and generated texts fall alike into the buckets of a joint k-means, near 0 where they
    share none. What `mauve-text` computes from the same features with its defaults.

    MAUVE is not a mean over prompts. A prompt's value is its jackknife influence, with the buckets as they are: the values' mean
    is MAUVE, their spread that of the figure from sample to sample, and two models on the same prompts pair up.

    Args:
        ids (`Sequence[str]`): Ids of the N prompts.
        references, responses (`np.ndarray` of shape `(N, D)`): Features of what was written and of what was generated.
        num_buckets (`int`, *optional*): Buckets of the k-means; by default a tenth of the prompts.

    Raises:
        ImportError: if mauve-text is not installed.
    """
    buckets = max(2, round(len(ids) / 10)) if num_buckets is None else num_buckets
    labels = _quantised(np.vstack([responses, references]), buckets)
    generated, written = labels[: len(ids)], labels[len(ids) :]
    counts = np.stack([np.bincount(each, minlength=buckets) for each in (written, generated)]).astype(float)
    score = _score(counts)
    # Prompts with the same two buckets have the same influence.
    pairs, place = np.unique(np.stack([written, generated], 1), axis=0, return_inverse=True)
    left_out = np.array([_score(_without(counts, pair)) for pair in pairs])[place.reshape(-1)]
    influences = score + (len(ids) - 1) * (left_out.mean() - left_out)
    figure = Figure.over_prompts(
        "mauve",
        dict(zip(ids, influences.tolist(), strict=True)),
        higher_is_better=True,
        settings={**(settings or {}), "num_buckets": buckets},
    )
    return replace(figure, low=max(0.0, figure.low), high=min(1.0, figure.high))


def _quantised(features: np.ndarray, num_buckets: int) -> np.ndarray:
    """Bucket of each row: normalised, projected to most of the variance, clustered; seeds as mauve-text has them."""
    import faiss
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    rows = normalize(features, norm="l2", axis=1)
    projection = PCA(random_state=_SEED + 1).fit(rows)
    wanted = int(np.argmax(np.cumsum(projection.explained_variance_ratio_) >= _EXPLAINED_VARIANCE)) + 1
    rows = np.ascontiguousarray(projection.transform(rows)[:, :wanted], dtype=np.float32)
    clusters = faiss.Kmeans(
        wanted,
        num_buckets,
        niter=_ITERATIONS,
        nredo=_REDO,
        update_index=True,
        seed=_SEED + 2,
        min_points_per_centroid=1,  # else it warns: MAUVE has twenty rows a bucket by design
    )
    clusters.train(rows)
    _, nearest = clusters.index.search(rows, 1)
    return nearest.reshape(-1)


def _without(counts: np.ndarray, pair: np.ndarray) -> np.ndarray:
    left = counts.copy()
    left[[0, 1], pair] -= 1
    return left


def _score(counts: np.ndarray) -> float:
    """Area under the divergence curve of two histograms of counts, `(2, buckets)`."""
    from mauve.compute_mauve import get_divergence_curve_for_multinomials
    from sklearn.metrics import auc

    written, generated = counts / counts.sum(1, keepdims=True)
    weights = np.linspace(1e-6, 1 - 1e-6, _MIXTURES)
    x, y = get_divergence_curve_for_multinomials(written, generated, weights, _SCALE).T
    by_x, by_y = np.argsort(x), np.argsort(y)
    return float(0.5 * (auc(x[by_x], y[by_x]) + auc(y[by_y], x[by_y])))
