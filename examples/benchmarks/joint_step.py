"""A joint training step with a shared context against the same step with separate rows."""

import torch

from trl_exbias.core.branches import GOLD, Branch, BranchedExample

from .common import alternate, load_model, report, step_trainer


def main(repeats: int = 3, contexts: int = 2) -> None:
    """Forward and backward of the trainer's own `training_step`; 2 contexts, two branches each."""
    model, tokenizer = load_model()
    with step_trainer(model, tokenizer) as trainer:
        for prompt, response, goal in ((384, 48, 0.62), (100, 150, 0.90)):
            batches = {}
            for name, shared in (("shared", True), ("separate", False)):
                trainer.data_collator.shared = shared
                batches[name] = trainer.data_collator.collate([_example(prompt, response)] * contexts)
            counts = trainer._get_num_items_in_batch([batches["shared"]], torch.device("cpu"))

            def step(name: str, batches=batches, counts=counts):
                loss = trainer.training_step(model, dict(batches[name]), counts)
                model.zero_grad()
                return loss

            losses = {name: step(name).item() for name in batches}
            assert abs(losses["shared"] / losses["separate"] - 1) < 1e-5, losses
            seconds = alternate({name: lambda name=name: step(name) for name in batches}, repeats)
            report(
                f"joint step, shared ÷ separate, prompt {prompt} / response {response}",
                seconds["shared"] / seconds["separate"],
                f"≤ {goal}",
                f"{seconds['shared']:.2f} s ÷ {seconds['separate']:.2f} s, equal losses",
            )


def _example(prompt: int, response: int) -> BranchedExample:
    generator = torch.Generator().manual_seed(0)
    context, gold, mixed = (
        torch.randint(5, 49000, (length,), generator=generator).tolist() for length in (prompt, response, response)
    )
    return BranchedExample(context, [-100] * prompt, [Branch(GOLD, gold, gold), Branch("mixed", mixed, gold)])


if __name__ == "__main__":
    main()
