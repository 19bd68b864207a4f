"""A joint step on real rows with several contexts in a row, against the same step with a row for each context."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import torch

from trl_exbias.core.branches import GOLD, Branch, BranchedExample
from trl_exbias.loop import joint

from .common import alternate, chat_rows, load_model, peak_extra_bytes, print_peak, report, step_trainer


#: How a step is laid out: packed; a row for each context, where attention skips what the mask hides; and the same without that, as
#: torch and transformers have it.
PACKED, PADDED, PLAIN = "packed", "padded", "plain"
ROWS = 8


def main() -> None:
    for name, goal in (("gsm8k", "≤ 0.70"), ("math", "≤ 0.55")):
        joint_step(name, goal)


def joint_step(name: str, goal: str, repeats: int = 1, batches: int = 2) -> None:
    """Forward and backward of the trainer's own `training_step`, on batches of 8 rows with two branches each."""
    with contestants(name, batches) as (runs, source, collated):
        for how, found in collated.items():
            slots = sum(batch["input_ids"].numel() for batch in found)
            padding = 1 - sum(int(batch["num_tokens"]) for batch in found) / slots
            report(
                f"joint batches of {ROWS} rows of {source}, {how}: share of padding",
                padding,
                "≤ 0.08" if how == PACKED else "before",
                f"{len(found)} batches",
            )
        losses = {how: run() for how, run in runs.items()}
        assert all(abs(loss / losses[PLAIN] - 1) < 1e-5 for loss in losses.values()), losses
        seconds = alternate(runs, repeats, warm=True)
    for how, title, aim in (
        (PLAIN, "a row for each context and attention over whole rows", goal),
        (PADDED, "a row for each context", ""),
    ):
        report(
            f"joint step on {source}, packed ÷ {title}",
            seconds[PACKED] / seconds[how],
            aim,
            f"{seconds[PACKED]:.2f} s ÷ {seconds[how]:.2f} s for {batches} batches, equal losses",
        )
    peaks = {how: peak_extra_bytes("packed_step", name, how) / 2**20 for how in (PACKED, PLAIN)}
    report(
        f"the same, peak memory besides the model on {source}",
        peaks[PACKED] / peaks[PLAIN],
        "≤ 1",
        f"{peaks[PACKED]:.0f} ÷ {peaks[PLAIN]:.0f} MiB",
    )


@contextlib.contextmanager
def contestants(name: str, batches: int) -> Iterator[tuple[dict[str, Callable[[], float]], str, dict[str, list[dict]]]]:
    """What runs some batches in each layout and returns the sum of their losses; which rows they are; and all batches."""
    model, tokenizer = load_model()
    prompts, responses, source = chat_rows(40 * ROWS, tokenizer, name)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(prompts), generator=generator).tolist()
    examples = [_example(prompts[i], responses[i], generator) for i in order]
    parts = [examples[i : i + ROWS] for i in range(0, len(examples), ROWS)]
    with step_trainer(model, tokenizer) as trainer:
        collator = trainer.data_collator
        collated = {}
        for how in (PACKED, PADDED):
            collator.packed = how == PACKED
            collated[how] = [collator.collate(part) for part in parts]

        def step(layout: str) -> float:
            total = 0.0
            for batch in collated[layout][:batches]:
                counts = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
                total += trainer.training_step(model, dict(batch), counts).item()
                model.zero_grad()
            return total

        def plain() -> float:
            with mock.patch.object(joint, "attention_by_blocks", lambda device: contextlib.nullcontext()):
                return step(PADDED)

        yield {PACKED: partial(step, PACKED), PADDED: partial(step, PADDED), PLAIN: plain}, source, collated


def _example(prompt: list[int], gold: list[int], generator: torch.Generator) -> BranchedExample:
    """Gold, and gold with a fifth of its tokens drawn at random."""
    drawn = torch.randint(5, 49000, (len(gold),), generator=generator).tolist()
    takes = (torch.rand(len(gold), generator=generator) < 0.2).tolist()
    mixed = [z if take else y for z, y, take in zip(drawn, gold, takes, strict=True)]
    return BranchedExample(prompt, [-100] * len(prompt), [Branch(GOLD, gold, gold), Branch("mixed", mixed, gold)])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        with contestants(sys.argv[1], batches=1) as (runs, *_):
            print_peak(runs[sys.argv[2]])
    else:
        main()
