"""
Draws the pictures of docs/pictures: `python -m website.pictures`.

Each stands on a light card of its own, so that it can be read on a light and on a dark page.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.sax.saxutils import escape


FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
INK, GREY, GOLD, OWN, CARD = "#22272e", "#6b7280", "#e6a700", "#0072b2", "#fbfbfa"
_HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
    'font-family="system-ui, sans-serif" font-size="14"><title>{title}</title>\n'
    '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="{grey}"/></marker></defs>\n'
    '<rect width="{width}" height="{height}" rx="10" fill="{card}"/>\n'
)


def picture(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    head = _HEAD.format(width=width, height=height, title=escape(title), grey=GREY, card=CARD)
    return head + "\n".join(parts) + "\n</svg>\n"


def text(
    x: float, y: float, words: str, colour: str = INK, anchor: str = "middle", size: int = 14, bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}" font-size="{size}"{weight}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, colour: str, fill: str = "none") -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="{fill}" stroke="{colour}" stroke-width="1.5"/>'


def arrow(*points: tuple[float, float]) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{GREY}" stroke-width="1.6" marker-end="url(#head)"/>'


def loop() -> str:
    """SFT, then roll out and train on both, iteration by iteration."""
    parts = []
    stages = [
        (20, "Train on gold", "sft_epochs", GOLD),
        (230, "Roll out", "the policy writes", OWN),
        (440, "Label", "gold, own or teacher", GREY),
        (650, "Train on both", "num_train_epochs", INK),
    ]
    for x, title, below, colour in stages:
        parts += [
            box(x, 50, 170, 70, colour, "#ffffff"),
            text(x + 85, 80, title, bold=True),
            text(x + 85, 102, below, GREY, size=12),
        ]
    parts += [arrow((x + 172, 85), (x + 206, 85)) for x, *_ in stages[:3]]
    parts += [
        arrow((735, 122), (735, 160), (315, 160), (315, 124)),
        text(525, 178, "num_iterations times, with the new policy", GREY, size=12),
    ]
    parts += [text(420, 28, "One train(): one step axis, one learning-rate schedule, one optimizer", bold=True)]
    return picture(840, 195, "The training loop", parts)


def branches() -> str:
    """A prompt with its gold response and one rollout in a single row, and which token sees which."""
    tokens = [
        *(("x", INK, f"x{i}") for i in "₁₂₃"),
        *(("y", GOLD, f"y{i}") for i in "₁₂₃"),
        *(("z", OWN, f"z{i}") for i in "₁₂₃"),
    ]
    size, left, top = 34, 150, 120
    parts = [
        text(left + 4.5 * size, 28, "One row: the prompt is encoded once", bold=True),
        text(left + 1.5 * size, 60, "prompt", INK, size=12),
        text(left + 4.5 * size, 60, "gold response", "#8a6500", size=12),
        text(left + 7.5 * size, 60, "rollout", OWN, size=12),
        text(left - 12, 106, "position", GREY, "end", 12),
        text(left - 12, 84, "token", GREY, "end", 12),
        text(left - 62, top + 4.6 * size, "sees", GREY, "end", 12),
    ]
    for j, (_, colour, name) in enumerate(tokens):
        x = left + j * size
        parts += [
            text(x + size / 2, 84, name, colour, size=14),
            text(x + size / 2, 106, str(j if j < 6 else j - 3), GREY, size=12),
        ]
        parts.append(text(left - 12, top + j * size + 22, name, colour, "end"))
    for i, j in seen([kind for kind, *_ in tokens]):
        parts.append(box(left + j * size + 3, top + i * size + 3, size - 6, size - 6, tokens[i][1], tokens[i][1]))
    parts.append(f'<rect x="{left}" y="{top}" width="{9 * size}" height="{9 * size}" fill="none" stroke="{GREY}"/>')
    right = left + 9 * size + 24
    for i, words in enumerate(
        (
            "The rollout sees the prompt and itself,",
            "not the gold response.",
            "Its positions begin after the prompt again,",
            "so the logits are those of a row of its own.",
        )
    ):
        parts.append(text(right, top + 190 + 20 * i, words, INK, "start", 13))
    return picture(790, 450, "Layout and attention mask of a row with two branches", parts)


def seen(kinds: list[str]) -> Iterator[tuple[int, int]]:
    """`(query, key)` of every pair in which the query attends to the key: `x` is the context, any other letter a branch."""
    for i, query in enumerate(kinds):
        for j, key in enumerate(kinds[: i + 1]):
            if key in ("x", query):
                yield i, j


def prefixes() -> str:
    """What a model sees in training and what it sees when it is used."""
    gold, own = ["She", "has", "21", "+", "19"], ["She", "has", "21", "-", "20"]
    parts = [
        text(20, 36, "Training: every prefix is gold", anchor="start", bold=True),
        text(20, 136, "Use: the prefix is the model's own, mistakes included", anchor="start", bold=True),
    ]
    for y, words in ((52, gold), (152, own)):
        for i, word in enumerate(words):
            wrong = word != gold[i]
            parts += [
                box(20 + 84 * i, y, 72, 36, OWN if wrong else GOLD, "#ffffff"),
                text(56 + 84 * i, y + 23, word, OWN if wrong else INK),
            ]
        parts.append(arrow((436, y + 18), (470, y + 18)))
    parts += [
        text(482, 75, "learns the next token here", anchor="start"),
        text(482, 175, "was never trained here", OWN, "start"),
    ]
    return picture(690, 210, "Exposure bias", parts)


def demo() -> str:
    """The recorded output of `exbias demo --quick`, docs/pictures/demo.txt."""
    lines = (FOLDER / "demo.txt").read_text(encoding="utf-8").splitlines()
    width, height = 24 + 7.85 * max(map(len, lines)), 30 + 19 * len(lines)
    rows = [
        f'<text x="14" y="{30 + 19 * i}" fill="#d6deeb" xml:space="preserve" font-family="DejaVu Sans Mono, Menlo, '
        f'Consolas, monospace" font-size="13" textLength="{7.85 * len(line):.1f}">{escape(line)}</text>'
        for i, line in enumerate(lines)
        if line
    ]
    card = f'<rect width="{width:.0f}" height="{height}" rx="10" fill="#1b2230"/>'
    return picture(round(width), height, "exbias demo --quick", [card, *rows])


def compare() -> str:
    """The first picture of a report, of the figures in docs/pictures/compare.json: those of docs/results.md at equal compute."""
    from trl_exbias.comparing.content import UNTRAINED, Content, Entry
    from trl_exbias.comparing.plots import plots
    from trl_exbias.evaluation.figures import Figure

    found = json.loads((FOLDER / "compare.json").read_text(encoding="utf-8"))
    models: dict[str, dict[str, Figure]] = {}
    for name, by_model in found.items():
        higher = by_model.pop("higher_is_better")
        for model, (mean, low, high) in by_model.items():
            figure = Figure(name, mean, low, high, n=48, higher_is_better=higher)
            models.setdefault(model, {})[f"compare/{name}"] = figure
    entries = tuple(
        Entry(model, None if model == UNTRAINED else model, figures=figures) for model, figures in models.items()
    )
    content = Content("Four methods at equal compute", entries, headline=tuple(f"compare/{name}" for name in found))
    return plots(content)[0].svg.decode()


DRAWN = (loop, branches, prefixes, demo, compare)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for draw in DRAWN:
        (FOLDER / f"{draw.__name__}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
