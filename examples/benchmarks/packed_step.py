"""A joint step on real rows with several contexts in a row, against the same step with a row for each context."""

import torch

from trl_exbias.core.branches import GOLD, Branch, BranchedExample

from .common import alternate, chat_rows, load_model, report, step_trainer


def main() -> None:
    for name, goal in (("gsm8k", "≤ 0.70"), ("math", "≤ 0.55")):
        joint_step(name, goal)


def joint_step(name: str, goal: str, repeats: int = 2, batches: int = 2, rows: int = 8) -> None:
    """Forward and backward of the trainer's own `training_step`, on batches of 8 rows with two branches each."""
    model, tokenizer = load_model()
    prompts, responses, source = chat_rows(40 * rows, tokenizer, name)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(prompts), generator=generator).tolist()
    examples = [_example(prompts[i], responses[i], generator) for i in order]
    parts = [examples[i : i + rows] for i in range(0, len(examples), rows)]
    with step_trainer(model, tokenizer) as trainer:
        collator = trainer.data_collator
        collated = {}
        for how in ("packed", "padded"):
            collator.packed = how == "packed"
            collated[how] = [collator.collate(part) for part in parts]
        for how, found in collated.items():
            slots = sum(batch["input_ids"].numel() for batch in found)
            padding = 1 - sum(int(batch["num_tokens"]) for batch in found) / slots
            report(
                f"joint batches of {rows} rows of {source}, {how}: share of padding",
                padding,
                "≤ 0.08" if how == "packed" else "before",
                f"{len(parts)} batches",
            )

        def step(how: str) -> float:
            total = 0.0
            for batch in collated[how][:batches]:
                counts = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
                total += trainer.training_step(model, dict(batch), counts).item()
                model.zero_grad()
            return total

        losses = {how: step(how) for how in collated}
        assert abs(losses["packed"] / losses["padded"] - 1) < 1e-5, losses
        seconds = alternate({how: lambda how=how: step(how) for how in collated}, repeats)
        report(
            f"joint step on {source}, packed ÷ padded, {rows} rows",
            seconds["packed"] / seconds["padded"],
            goal,
            f"{seconds['packed']:.2f} s ÷ {seconds['padded']:.2f} s for {batches} batches, equal losses",
        )


def _example(prompt: list[int], gold: list[int], generator: torch.Generator) -> BranchedExample:
    """Gold, and gold with a fifth of its tokens drawn at random."""
    drawn = torch.randint(5, 49000, (len(gold),), generator=generator).tolist()
    takes = (torch.rand(len(gold), generator=generator) < 0.2).tolist()
    mixed = [z if take else y for z, y, take in zip(drawn, gold, takes, strict=True)]
    return BranchedExample(prompt, [-100] * len(prompt), [Branch(GOLD, gold, gold), Branch("mixed", mixed, gold)])


if __name__ == "__main__":
    main()
