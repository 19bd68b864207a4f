"""Random branched examples, and the losses and gradients of their batch in one layout or the other."""

import contextlib
import random

import torch

from trl_exbias.core.branches import GOLD, Branch, BranchedExample
from trl_exbias.core.collating import BranchCollator
from trl_exbias.core.layout import lay_out
from trl_exbias.core.losses import sum_by_kind

from .tiny import VOCAB_SIZE


KINDS = (GOLD, "mixed", "own")


def collator(**options) -> BranchCollator:
    return BranchCollator(base=lambda rows: rows, kinds=KINDS, pad_token_id=0, **options)


def random_examples(num: int, seed: int = 0, context: int = 20, branch: int = 12) -> list[BranchedExample]:
    """Contexts and branches of up to that many tokens."""
    generator = random.Random(seed)

    def ids(low, high):
        return [generator.randrange(1, VOCAB_SIZE) for _ in range(generator.randint(low, high))]

    def random_branch(kind):
        own = ids(1, branch)
        return Branch(kind, own, [generator.choice([-100, token, generator.randrange(VOCAB_SIZE)]) for token in own])

    found = []
    for _ in range(num):
        context_ids = ids(1, context)
        found.append(BranchedExample(context_ids, [-100] * len(context_ids), [random_branch(kind) for kind in KINDS]))
    return found


def losses_by_kind(model, batch: dict) -> torch.Tensor:
    """Summed NLL of each kind, through TRL's fused LM head, as the trainer computes it."""
    names = ("input_ids", "shift_labels", "position_ids", "attention_mask", "segment_ids", "example_ids")
    inputs = lay_out({name: batch[name] for name in names if name in batch}, model)
    output = model(**inputs, use_cache=False, fused_lm_head=True)
    return sum_by_kind(-output.log_probs * batch["branch_weights"], batch["branch_kinds"], len(KINDS))


def gradients(model, batch, forward=contextlib.nullcontext) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and the gradient of their sum; the forward runs in a block of `forward()`."""
    model.zero_grad()
    with forward():
        sums = losses_by_kind(model, batch)
    sums.sum().backward()
    return sums.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
