"""Negative log-likelihoods of given labels along given tokens, in batches, without a full logits tensor."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .batching import READING_PADDING, run_in_batches
from .model_check import check_model
from .modeling import LMHead, inference
from .reading import logit_chunks, read_along
from .token_ids import TokenIds, check_prompts


def label_nll(
    model: nn.Module,
    contexts: Sequence[TokenIds],
    continuations: Sequence[TokenIds],
    labels: Sequence[TokenIds],
    pad_token_id: int,
    max_batch_tokens: int = 16384,
) -> list[list[float]]:
    """
    `−log p(label_j | context, continuation_<j)` in nats, for every position j with a label.

    With `labels = continuations` this is the teacher-forced NLL. With gold labels along the model's own tokens it is
    the NLL that free-running cross-entropy averages.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Left as it was found.
        contexts, continuations, labels (`Sequence[Sequence[int]]`): One entry a row; labels of -100 give no entry.
        pad_token_id (`int`): Any valid token id.

    Returns:
        `list[list[float]]`: For each row, the NLLs in order.
    """
    return label_values(
        lambda logits, targets: F.cross_entropy(logits, targets, reduction="none"),
        model,
        contexts,
        continuations,
        labels,
        pad_token_id,
        max_batch_tokens,
    )


def label_values(
    value: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    model: nn.Module,
    contexts: Sequence[TokenIds],
    continuations: Sequence[TokenIds],
    labels: Sequence[TokenIds],
    pad_token_id: int,
    max_batch_tokens: int = 16384,
) -> list[list[float]]:
    """
    As [`label_nll`], with any value of a position: `value(logits (n, V), labels (n,))` gives `(n,)`.
    """
    check_prompts(contexts, continuations, labels, example_ids=None)
    head = LMHead(model)
    out: list[list[float]] = [[] for _ in contexts]
    rows_to_run = [row for row, row_labels in enumerate(labels) if any(label != -100 for label in row_labels)]

    def run(batch: list[int]) -> None:
        rows = [rows_to_run[i] for i in batch]
        hidden = read_along(model, [contexts[row] for row in rows], [continuations[row] for row in rows], pad_token_id)
        targets = torch.tensor([label for row in rows for label in labels[row]], device=hidden.device)
        hidden, targets = hidden[targets != -100], targets[targets != -100]
        found = torch.cat(
            [value(head(hidden[part]), targets[part]) for part in logit_chunks(hidden, head.vocab_size)]
        ).tolist()
        for row in rows:
            count = sum(label != -100 for label in labels[row])
            out[row], found = found[:count], found[count:]

    if rows_to_run:
        check_model(model)
        with inference(model):
            lengths = [len(contexts[row]) + len(continuations[row]) for row in rows_to_run]
            run_in_batches(run, lengths, max_batch_tokens, READING_PADDING)
    return out


def several_nll(
    model: nn.Module,
    contexts: Sequence[TokenIds],
    continuations: Sequence[TokenIds],
    labels: Sequence[Sequence[TokenIds]],
    pad_token_id: int,
    max_batch_tokens: int = 16384,
) -> tuple[list[list[list[float]]], list[list[float]]]:
    """
    [`label_nll`] of several labels of each position, and the NLL of its most probable token, from one pass.

    Args:
        labels (`Sequence[Sequence[Sequence[int]]]`): As many rows of labels as wanted for each row; none of them is -100.

    Returns:
        For each of the labels the NLLs, row by row; and those of the most probable tokens.
    """
    check_prompts(contexts, continuations, *labels, example_ids=None)
    head = LMHead(model)
    out: list[list[list[float]]] = [[[] for _ in contexts] for _ in range(len(labels) + 1)]
    rows_to_run = [row for row, continuation in enumerate(continuations) if len(continuation)]

    def run(batch: list[int]) -> None:
        rows = [rows_to_run[i] for i in batch]
        hidden = read_along(model, [contexts[row] for row in rows], [continuations[row] for row in rows], pad_token_id)
        targets = torch.tensor([[label for row in rows for label in each[row]] for each in labels]).to(hidden.device)
        found = []
        for part in logit_chunks(hidden, head.vocab_size):
            log_probs = head(hidden[part]).log_softmax(-1)
            wanted = log_probs.gather(1, targets[:, part].T)
            found.append(-torch.cat([wanted, log_probs.max(-1, keepdim=True).values], 1))
        for each, nll in zip(out, torch.cat(found).T.tolist(), strict=True):
            for row in rows:
                each[row], nll = nll[: len(continuations[row])], nll[len(continuations[row]) :]

    if rows_to_run:
        check_model(model)
        with inference(model):
            lengths = [len(contexts[row]) + len(continuations[row]) for row in rows_to_run]
            run_in_batches(run, lengths, max_batch_tokens, READING_PADDING)
    return out[:-1], out[-1]
