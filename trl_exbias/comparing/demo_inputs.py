"""What a comparison without any model or data of its own runs on: the embedded model and its word problems."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings.keys import unknown_key_message


if TYPE_CHECKING:
    from .comparison_file import Comparison, PlannedRun


_DEFAULTS = {"rows": 48, "held_out": 48, "seed": 0}


def check_demo(demo: Any, base: dict[str, Any], evaluate: dict[str, Any]) -> list[str]:
    """What is wrong with the key `demo`."""
    if not isinstance(demo, dict):
        return [f"`demo` must be a mapping of {', '.join(_DEFAULTS)} to numbers, got {demo!r}."]
    problems = [f"`demo`: {unknown_key_message(key, _DEFAULTS)}" for key in demo if key not in _DEFAULTS]
    problems += [
        f"`demo`: `{key}` must be {'0' if key == 'seed' else '1'} or more, got {value!r}."
        for key, value in demo.items()
        if key in _DEFAULTS and not (isinstance(value, int) and value >= (key != "seed"))
    ]
    given = [f"`base: {key}`" for key in ("model_name_or_path", "dataset_name") if key in base]
    given += ["`evaluate: data`"] if "data" in evaluate else []
    return problems + ([f"`demo` stands for {', '.join(given)}: leave one or the other out."] if given else [])


def with_demo(comparison: "Comparison", output: Path) -> "Comparison":
    """The comparison with the embedded model and with word problems, written to `output/data`, in their places."""
    if comparison.demo is None:
        return comparison
    from ..demo.embedded_model import embedded_model
    from ..demo.word_problems import word_problems

    sizes = {**_DEFAULTS, **comparison.demo}
    train = word_problems(sizes["rows"], sizes["seed"]).to_list()
    seen = [row["prompt"] for row in train]
    # The number of questions is limited: another seed meets some of the same.
    others = word_problems(sizes["rows"] + sizes["held_out"], sizes["seed"] + 1).to_list()
    test = [row for row in others if row["prompt"] not in seen][: sizes["held_out"]]
    paths = {name: output / "data" / f"{name}.jsonl" for name in ("train", "test")}
    paths["train"].parent.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    keys = {"model_name_or_path": str(embedded_model()), "dataset_name": str(paths["train"])}

    def filled(run: "PlannedRun") -> "PlannedRun":
        return replace(run, keys={**keys, **run.keys})

    return replace(
        comparison,
        base={**keys, **comparison.base},
        runs=tuple(map(filled, comparison.runs)),
        evaluate={**comparison.evaluate, "data": [str(paths["test"])]},
        demo=None,
    )
