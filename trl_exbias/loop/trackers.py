"""Rollouts as a table in the experiment trackers of `report_to`."""

from collections.abc import Iterable, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback

from ..core.data import Example
from ..core.upstream import tensorboard_writers


_NAME, _MOST_ROWS = "completions", 100


def rollout_rows(
    rollouts: Dataset, gold: Dataset, tokenizer: PreTrainedTokenizerBase, step: int, iteration: int
) -> list[dict[str, Any]]:
    """The first hundred rollouts of a phase as text: `step`, `iteration`, `kind`, `prompt`, `gold` and `completion`."""
    rows = []
    for branch in rollouts.select(range(min(_MOST_ROWS, len(rollouts)))):
        example = Example.from_row(branch["example_id"], gold[branch["example_id"]])
        prompt, answer, completion = (
            tokenizer.decode(ids) for ids in (example.context_ids, example.response_ids, branch["input_ids"])
        )
        rows.append(
            {
                "step": step,
                "iteration": iteration,
                "kind": branch["kind"],
                "prompt": prompt,
                "gold": answer,
                "completion": completion,
            }
        )
    return rows


def log_table(report_to: Sequence[str], callbacks: Iterable[TrainerCallback], rows: list[dict[str, Any]]) -> None:
    """
    Hands the rows to every tracker of `report_to` that shows tables, under the name "completions".

    Args:
        report_to (`Sequence[str]`): As in [`~transformers.TrainingArguments`]; the Trainer's callbacks have opened their runs.
        callbacks (`Iterable[TrainerCallback]`): The Trainer's: TensorBoard's has its writer.
    """
    if not rows:
        return
    if "wandb" in report_to or "trackio" in report_to:
        import pandas as pd

        table = pd.DataFrame(rows)
        if "wandb" in report_to:
            import wandb

            if wandb.run is not None:
                wandb.log({_NAME: wandb.Table(dataframe=table)})
        if "trackio" in report_to:
            import trackio

            trackio.log({_NAME: trackio.Table(dataframe=table)})
    if "tensorboard" in report_to:
        for writer in tensorboard_writers(callbacks):
            writer.add_text(_NAME, _markdown(rows), rows[0]["step"])


def _markdown(rows: list[dict[str, Any]]) -> str:
    def cell(value: Any) -> str:
        return str(value).replace("|", "\\|").replace("\n", "<br>")

    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([cell(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
