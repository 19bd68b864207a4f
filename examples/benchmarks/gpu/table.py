"""
Puts the figures of the GPU benchmark into docs/benchmarks.md: `python -m examples.benchmarks.gpu.table DIR`.

The section between the two markers is made again from the JSON files that are there; what has not been measured is not in it.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .parts import PARTS, ROOT


BEGIN, END = "<!-- gpu figures: begin -->", "<!-- gpu figures: end -->"
NOTHING = "Nothing has been measured on a GPU yet."
_GIB = 2**30
_KEY = re.compile(r"(?P<kind>steps|rollouts|global batch) (?P<prompt>\d+)/(?P<response>\d+)(?: (?P<mode>with.*))?")
Row = tuple[str, str, str]


def section(results: dict[str, dict[str, Any]]) -> str:
    """The text between the markers, from the content of each part's JSON by its name."""
    blocks = [_block(part.about, results[part.name], ROWS[part.name]) for part in PARTS if part.name in results]
    return "\n\n".join(block for block in blocks if block) or NOTHING


def _block(about: str, content: dict[str, Any], rows_of: Any) -> str | None:
    machine = content["machine"]
    rows = list(rows_of(content["figures"]))
    if machine["card"] is None or not rows:  # a dry run is not a measurement
        return None
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "trl") if name in machine)
    head = f"**{about[0].upper()}{about[1:]}.** {machine['card']}, {machine['date']}, {versions}."
    if not content.get("finished"):
        head += " Cut off by its time limit: what is missing here was not measured."
    head = "\n\n".join([head, *content.get("notes", [])])
    lines = [head, "", "| figure | value | goal |", "|---|--:|--:|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def _seven_b(figures: dict[str, Any]) -> Iterator[Row]:
    if "matrix_rate" in figures:
        yield "bfloat16 matrix product, 8192 × 8192 × 8192", f"{figures['matrix_rate'] / 1e12:.0f} TFLOP/s", ""
    for key, value in figures.items():
        found = _KEY.fullmatch(key)
        if found is None:
            continue
        shape = f"prompt {found['prompt']} / response {found['response']}"
        mode = f"{shape}, {found['mode']}"
        if found["kind"] == "steps":
            yield from _steps(mode, value)
            if "rollouts" in value:
                yield from _memory(f"rollouts, {shape}", value["rollouts"])
        elif found["kind"] == "rollouts":
            yield from _rollouts(shape, value)
        else:
            seconds = f"{value['generation_seconds']:.0f} s : {value['training_seconds']:.0f} s"
            ratio = f"{value['generation_to_training']:.2f} ({seconds})"
            yield f"generation : training for {value['rows']} rows, extrapolated, {mode}", ratio, "≤ 1 (paper: 4.9)"


def _steps(shape: str, value: dict[str, Any]) -> Iterator[Row]:
    for name, title, goal in (("sft", "SFT step", ""), ("joint", "BASH joint step", "≥ 35 %")):
        step = value[name]
        yield f"{title}, {step['rows']} rows, {shape}", f"{step['tokens_per_second']:,.0f} tokens/s", ""
        shares = f"{step['share']:.0%}"
        if "share_with_recomputation" in step:
            shares += f"; {step['share_with_recomputation']:.0%} with recomputation"
        yield f"{title}, share of the matrix rate, {shape}", shares, goal
        yield from _memory(f"{title}, {shape}", step)


def _memory(title: str, value: dict[str, Any]) -> Iterator[Row]:
    planned, found = value["planned"]["total"], value["peak_bytes"]
    if found is not None:
        text = f"{planned / found:.2f} ({planned / _GIB:.1f} ÷ {found / _GIB:.1f} GiB)"
        yield f"planned ÷ measured memory, {title}", text, "0.85 to 1.15"


def _rollouts(shape: str, value: dict[str, Any]) -> Iterator[Row]:
    rows = f"{value['rows']} rows, {shape}"
    # A part that was cut off has the first of them.
    for verb in ("sample", "label"):
        if verb in value:
            yield f"`{verb}`, {rows}", f"{value[verb]['tokens_per_second']:,.0f} tokens/s", ""
    for kind, what in (("own", "gold drawn from the policy"), ("random", "random gold: the worst case")):
        mixed = value.get(f"mix_{kind}")
        if mixed is None:
            continue
        what = f"{what}, {mixed['changed_rate']:.0%} of the drawn tokens differ from gold, {rows}"
        yield f"`mix` by sweeps, {what}", f"{mixed['tokens_per_second']:,.0f} tokens/s", ""
        if "times_as_fast" in mixed:
            text = f"{mixed['times_as_fast']:.1f} × ({mixed['decoding_seconds']:.1f} ÷ {mixed['seconds']:.1f} s)"
            yield f"the same, against decoding in one batch, {rows}", text, "≥ 4 ×" if kind == "own" else ""


def _gsm8k(figures: dict[str, Any]) -> Iterator[Row]:
    for key, value in figures.items():
        if "accuracy" in value:
            ce = f"CE {value['teacher_forced']:.3f} teacher-forced, {value['free_running']:.2f} free-running"
            yield f"{key}: greedy answers right", f"{value['accuracy']:.1%} ({ce})", ""
    for arm, value in figures.get("against more SFT", {}).items():
        low, high = (100 * end for end in value["interval"])
        text = f"{100 * value['difference']:+.1f} points [{low:+.1f}, {high:+.1f}], {value['seeds']} seeds"
        yield f"{arm} against as many tokens of SFT", text, ""


def _stories(figures: dict[str, Any]) -> Iterator[Row]:
    for key, value in figures.items():
        if "perplexity" in value:
            mean = sum(value["free_running"]) / len(value["free_running"])
            yield key, f"perplexity {value['perplexity']:.2f}, free-running CE {mean:.3f}", ""
        else:
            for arm, against in value.items():
                low, high = against["interval"]
                text = f"{against['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
                yield f"{key.replace('against', f'{arm} against')}, free-running CE", text, ""


ROWS = {"seven_b": _seven_b, "gsm8k": _gsm8k, "stories": _stories}


def fill(page: str, results: dict[str, dict[str, Any]]) -> str:
    """
    The page with a new GPU section.

    Raises:
        ValueError: if the page has no markers.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The page has no section between `{BEGIN}` and `{END}`.")
    return f"{before}{BEGIN}\n{section(results)}\n{END}{after}"


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The content of the JSON files of a folder, by part."""
    paths = {part.name: folder / f"{part.name}.json" for part in PARTS}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the JSON files")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md", help="the page to fill")
    options = parser.parse_args()
    options.page.write_text(fill(options.page.read_text(encoding="utf-8"), read(options.folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
