"""How far what a model writes lies from the references, as sentence embeddings see it (Cen 2024, Fig. 2)."""

import csv
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import MissingPackageError, UsageError
from ..core.upstream import commit_hash
from .figures import Figure


if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

#: Cen 2024's, footnote 10.
DEFAULT_MODEL = "sentence-transformers/all-mpnet-base-v2"


def embedding_distance(
    predictions: Mapping[str, str],
    references: Mapping[str, str | Sequence[str]],
    model: "str | SentenceTransformer" = DEFAULT_MODEL,
    batch_size: int = 32,
) -> Figure:
    """
    `1 − cos(e(prediction), e(reference))` of sentence embeddings e: 0 for the same direction, 2 for the opposite.

    With several references, the distance to the nearest. To draw many responses to one query, as Cen 2024 does, give each
    response an id of its own, and each the query's reference.

    Args:
        predictions (`Mapping[str, str]`): By the prompt's id.
        references (`Mapping[str, str | Sequence[str]]`):
            One or more for each prompt. A prompt without a prediction has no value.
        model (`str` or [`~sentence_transformers.SentenceTransformer`], *optional*):
            Hub id or folder, or a model that is loaded; by default the paper's, all-mpnet-base-v2. It reads no more than its
            `max_seq_length` tokens of a text.
        batch_size (`int`, *optional*, defaults to `32`): Texts encoded together.

    Returns:
        [`Figure`]: `embedding_distance`, lower being nearer.

    Raises:
        ImportError: if sentence-transformers is not installed.
        ValueError: for a prediction without a reference.
    """
    lists = {prompt: [row] if isinstance(row, str) else list(row) for prompt, row in references.items()}
    bare = [prompt for prompt in predictions if not lists.get(prompt)]
    if bare:
        raise UsageError(
            f"There is no reference for {len(bare)} of {len(predictions)} predictions, such as {bare[0]!r}."
        )
    encoder = _load(model) if isinstance(model, str) else model
    # References repeat from model to model and from response to response: each text is encoded once.
    texts = list(dict.fromkeys([*predictions.values(), *(text for prompt in predictions for text in lists[prompt])]))
    started = time.perf_counter()
    vectors = np.asarray(
        encoder.encode(
            texts,
            batch_size=batch_size,
            convert_to_numpy=True,
            show_progress_bar=len(texts) > 8 * batch_size,
        ),
        dtype=np.float64,
    )
    logger.info(f"Embedded {len(texts)} texts in {time.perf_counter() - started:.1f} s.")
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units = dict(zip(texts, np.divide(vectors, norms, out=np.full_like(vectors, np.nan), where=norms > 0), strict=True))
    values: dict[str, float | None] = {}
    for prompt, row in lists.items():
        distances = [1 - float(units[predictions[prompt]] @ units[text]) for text in row if prompt in predictions]
        # A text without a direction (a zero vector) is at no distance.
        there = [max(0.0, distance) for distance in distances if not np.isnan(distance)]
        values[prompt] = min(there, default=None)
    settings = {"distance": "1 - cosine", "over_references": "nearest", **_identity(encoder, model)}
    return Figure.over_prompts("embedding_distance", values, higher_is_better=False, settings=settings)


def plot_embedding_distance(figures: Mapping[str, Figure], path: str | Path, title: str | None = None) -> Path:
    """
    Draws the distribution of the distances of several models as violins, as Cen 2024's Fig. 2: inside each, a box from the
    first to the third quartile, the median as a white line, and whiskers to the least and the greatest distance.

    Args:
        figures (`Mapping[str, Figure]`): [`embedding_distance`] of each model, by the name on the axis.
        path (`str` or `Path`): The path of the PNG. Its data (`model, prompt, distance`) are in a CSV next to it.

    Returns:
        `Path`: The CSV.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if a model has no distance to draw, or the figures are not of the same measurement.
    """
    try:
        from matplotlib.figure import Figure as Picture
    except ImportError as error:
        raise MissingPackageError("The plot needs matplotlib: `pip install trl-exbias[plot]`.") from error
    empty = [name for name, figure in figures.items() if not figure.per_prompt]
    if empty or not figures:
        raise UsageError(f"There is no distance to draw{' of ' + ', '.join(empty) if empty else ''}.")
    if any(figure.settings != next(iter(figures.values())).settings for figure in figures.values()):
        raise UsageError("These distances were measured with unlike settings and cannot stand in one picture.")
    rows = [np.array(list(figure.per_prompt.values())) for figure in figures.values()]
    picture = Picture(figsize=(1.4 + 1.3 * len(rows), 3.8), layout="constrained")
    axes, places = picture.subplots(), range(1, len(rows) + 1)
    for place, row in zip(places, rows, strict=True):
        if np.ptp(row) > 0:  # a density needs two values that differ
            bodies: Any = axes.violinplot(row, [place], widths=0.8, showextrema=False)["bodies"]
            body = bodies[0]
            body.set(facecolor="#0072B2", alpha=0.35)
        least, first, median, third, greatest = np.quantile(row, [0, 0.25, 0.5, 0.75, 1])
        axes.vlines(place, least, greatest, color="0.25", linewidth=1)
        axes.vlines(place, first, third, color="0.25", linewidth=7)
        axes.hlines(median, place - 0.05, place + 0.05, color="white", linewidth=1.6, zorder=3)
    axes.set_xticks(list(places), list(figures))
    axes.set_ylabel("embedding distance (1 − cosine)")
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title)
    path = Path(path)
    picture.savefig(path, dpi=150)
    table = path.with_suffix(".csv")
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "prompt", "distance"])
        writer.writerows((name, *pair) for name, figure in figures.items() for pair in figure.per_prompt.items())
    return table


def _load(name: str) -> "SentenceTransformer":
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingPackageError(
            "Embedding distances need sentence-transformers: `pip install trl-exbias[embeddings]`."
        ) from error
    return SentenceTransformer(name, trust_remote_code=False)


def _identity(encoder: "SentenceTransformer", given: Any) -> dict[str, Any]:
    """Which embeddings these are: other models' distances are not comparable."""
    config = getattr(encoder[0], "config", None) or getattr(getattr(encoder[0], "auto_model", None), "config", None)
    name = given if isinstance(given, str) else (getattr(config, "name_or_path", "") or type(encoder).__name__)
    return {
        "model": name,
        "revision": commit_hash(config),
        "max_seq_length": encoder.max_seq_length,
    }
