"""How far the responses' embeddings are from the references' (Cen 2024, Fig. 2), with a violin for each model."""

from pathlib import Path
from typing import Any

import numpy as np

from ..figures import Figure
from ..work import Work
from .suite import Suite


PLOT = "embedding_distance.png"


def _figures(work: Work) -> dict[str, Figure]:
    from ..embeddings import embedding_distance

    # All responses at once: each reference is embedded once.
    texts = {f"{key}/{number}": one.text for number, each in enumerate(work.repetitions) for key, one in each.items()}
    references = {key: work.references[key.rpartition("/")[0]] for key in texts}
    each = embedding_distance(texts, references, model=work.options.embedding_model)
    work.drawn["embedding_distance"] = each
    numbers = range(len(work.repetitions))
    values = {item.id: [each.per_prompt.get(f"{item.id}/{number}") for number in numbers] for item in work.items}
    figure = Figure.over_prompts(
        "embedding_distance",
        {key: _mean(row) for key, row in values.items()},
        higher_is_better=False,
        settings=each.settings,
        std=float(np.std([_mean(column) or 0.0 for column in zip(*values.values(), strict=True)]))
        if len(numbers) > 1
        else None,
    )
    return {"embedding_distance": figure}


def _mean(values: Any) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _plot(drawn: dict[str, dict[str, Figure]], folder: Path) -> list[Path]:
    from ..embeddings import plot_embedding_distance

    path = folder / PLOT
    figures = {model: figures["embedding_distance"] for model, figures in drawn.items()}
    return [path, plot_embedding_distance(figures, path)]


SUITE = Suite(
    name="embeddings",
    figures=_figures,
    plot=_plot,
    packages={"sentence_transformers": "embeddings", "matplotlib": "plot"},
)
