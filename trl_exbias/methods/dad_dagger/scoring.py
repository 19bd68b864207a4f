"""What a teacher says of branches: worked out ahead, for the disk, and of a batch in training."""

from collections.abc import Callable, Sequence

import torch

from ...core.batching import READING_PADDING, run_in_batches
from ...core.branches import Branch, concatenate
from ...core.layout import lay_out
from ...core.modeling import LMHead, inference, model_device, position_limit, read_backbone
from ...core.reading import logit_chunks, read_along
from ...core.sharding import is_sharded
from ...core.soft_targets import DenseTarget, SoftTarget, TopKTarget, top_k_of
from .matching import check_lengths


def teacher_labels(
    head: LMHead,
    model: torch.nn.Module,
    rows: Sequence[tuple[list[int], Branch]],
    vocab_size: int,
    top_k: int | None,
    temperature: float,
    max_batch_tokens: int,
    done: Callable[[int], object] = lambda rows: None,
) -> list[dict[str, torch.Tensor]]:
    """
    What the teacher says at every labelled position of some branches, on the CPU.

    Args:
        head ([`LMHead`]): The teacher's.
        rows (`Sequence[tuple[list[int], Branch]]`): Contexts and branches.
        top_k (`int`, *optional*): Tokens kept; `None` keeps the last hidden states, which are the whole distribution.
        done (`Callable`): Called with the number of rows that are done.

    Returns:
        `list[dict]`: For each row `{"hidden": (n, H)}`, or `ids`, `log_probs` and `tail_log_prob`.
    """
    out: list[dict[str, torch.Tensor]] = [{} for _ in rows]

    def run(batch: list[int]) -> None:
        contexts, branches = [rows[i][0] for i in batch], [rows[i][1] for i in batch]
        hidden = read_along(model, contexts, [branch.input_ids for branch in branches], pad_token_id=0)
        labels = torch.tensor([label for branch in branches for label in branch.labels], device=hidden.device)
        hidden = hidden[labels != -100]
        if top_k is None:
            found = {"hidden": hidden}
        else:
            found = concatenate(
                top_k_of(head, hidden[part], top_k, vocab_size, temperature)
                for part in logit_chunks(hidden, head.vocab_size)
            )
        counts = [sum(label != -100 for label in branch.labels) for branch in branches]
        pieces = {name: tensor.cpu().split(counts) for name, tensor in found.items()}
        for place, i in enumerate(batch):
            out[i] = {name: split[place] for name, split in pieces.items()}
        done(len(batch))

    lengths = [len(context) + len(branch.input_ids) - 1 for context, branch in rows]
    check_lengths(position_limit(model), lengths)
    with inference(model):
        run_in_batches(run, lengths, max_batch_tokens, READING_PADDING)
    return out


def soft_target(
    head: LMHead | None,
    model: torch.nn.Module | None,
    inputs: dict[str, torch.Tensor],
    scored: torch.Tensor,
    stored: dict[str, torch.Tensor] | None,
    vocab_size: int,
) -> SoftTarget:
    """
    The soft labels of a batch.

    Args:
        head ([`LMHead`], *optional*): The teacher's; not needed where k tokens are stored.
        model (`nn.Module`, *optional*): The loaded teacher, where nothing is stored.
        inputs (`dict`): The batch, as [`BranchCollator`] makes it.
        scored (`torch.Tensor` of shape `(rows, length)`): Positions with a label.
        stored (`dict`, *optional*): What [`teacher_labels`] found of them.
        vocab_size (`int`): Tokens that student and teacher have in common.
    """
    if stored is not None and "hidden" not in stored:
        return TopKTarget(**stored, vocab_size=vocab_size)
    assert head is not None
    if stored is not None:
        return DenseTarget(stored["hidden"].to(head.projection.weight.device), head, vocab_size)
    assert model is not None
    if not is_sharded(model):
        # It may have been placed elsewhere than the student.
        inputs = {name: value.to(model_device(model)) for name, value in inputs.items()}
    with torch.no_grad():
        hidden = read_backbone(model, **lay_out(inputs, model), use_cache=False).last_hidden_state
    return DenseTarget(hidden[scored.to(hidden.device)], head, vocab_size)
