"""An evaluation as a table of text: a line for each figure of each model."""

from typing import Any

from .figures import Figure


_HEADS = ["", "", "figure", "95 % interval", "± std", "n", "missing"]


def table(evaluation: dict[str, Any]) -> str:
    """
    The figures of an evaluation (what [`evaluate`] returns), suite by suite; with two or more models, next to each one's the
    difference to the first model's, prompt by prompt.
    """
    models, differences = evaluation["models"], evaluation["differences"]
    first = next(iter(models))
    heads = list(_HEADS) + ([f"minus {first}", "95 % interval"] if len(models) > 1 else [])
    blocks = []
    for suite, names in _names(models).items():
        lines = [[suite, *heads[1:]]]
        for figure_name in names:
            for model, found in models.items():
                record = found["figures"].get(suite, {}).get(figure_name)
                if record is None:
                    continue
                label = figure_name if model == first else ""
                lines.append([label, model, *_cells(Figure.from_dict(record))])
                if len(models) > 1:
                    other = differences.get(model, {}).get(suite, {}).get(figure_name)
                    lines[-1] += ["", ""] if other is None else _cells(Figure.from_dict(other), "+")[:2]
        blocks.append(aligned(lines, left=2))
    return "\n\n".join(blocks)


def aligned(lines: list[list[str]], left: int = 1) -> str:
    """Columns of equal width, the first `left` of them flush left."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _names(models: dict[str, Any]) -> dict[str, list[str]]:
    names: dict[str, dict[str, None]] = {}
    for found in models.values():
        for suite, figures in found["figures"].items():
            names.setdefault(suite, {}).update(dict.fromkeys(figures))
    return {suite: list(found) for suite, found in names.items()}


def _cells(figure: Figure, sign: str = "") -> list[str]:
    std = "" if figure.std is None else f"{figure.std:.2g}"
    missing = str(figure.missing) if figure.missing else ""
    if not figure.n:
        return ["–", "", "", "0", missing]
    return [f"{figure.mean:{sign}.4g}", f"[{figure.low:.4g}, {figure.high:.4g}]", std, str(figure.n), missing]
