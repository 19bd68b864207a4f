"""Pozzi 2025 Algorithm 1, slowly: every pair of D_T on its own, one forward for each, one gradient step over the whole set."""

from dataclasses import dataclass

import torch

from trl_exbias.rollouts import SamplingOptions
from trl_exbias.rollouts.noise import derive_seed

from . import rollouts
from .distillation import position_loss, teacher_distribution


@dataclass
class Pair:
    """(context, hard label w_t, soft label p*(. | context))."""

    context: list[int]
    label: int
    soft: torch.Tensor | None


def trajectories(documents: list[list[int]], context: int, horizon: int, stride: int) -> list[list[int]]:
    """H + T tokens every `stride` tokens, never across documents."""
    return [
        document[start : start + context + horizon]
        for document in documents
        for start in range(0, len(document), stride)
        if start + context + horizon <= len(document)
    ]


def gold_pairs(cut: list[list[int]], context: int, teacher) -> list[Pair]:
    """t = H+1 .. T_k, on the true context."""
    return [_pair(row[:t], row[t], teacher) for row in cut for t in range(context, len(row))]


def rollout_pairs(cut: list[list[int]], context: int, student, teacher, seed: int, iteration: int) -> list[Pair]:
    """t = H+2 .. T_k: the student's context, the data's token, the teacher on the student's context."""
    pairs = []
    for index, row in enumerate(cut):
        options = SamplingOptions(max_new_tokens=len(row) - context, seed=derive_seed(seed, "rollouts", iteration))
        own = rollouts.sample(student, row[:context], options, index)
        for t in range(context + 1, len(row)):
            pairs.append(_pair(row[:context] + own[: t - context], row[t], teacher))
    return pairs


def _pair(tokens: list[int], label: int, teacher) -> Pair:
    return Pair(tokens, label, None if teacher is None else teacher_distribution(teacher, tokens))


def objective(student, pairs: list[Pair], alpha: float) -> torch.Tensor:
    """The mean over D_T of alpha NLL + (1 - alpha) KD."""
    losses = []
    for pair in pairs:
        logits = student(input_ids=torch.tensor([pair.context])).logits[0, -1]
        soft = torch.zeros(len(logits), dtype=torch.float64) if pair.soft is None else pair.soft
        losses.append(position_loss(logits, pair.label, soft, alpha))
    return torch.stack(losses).mean()


def train(student, teacher, cut, context: int, alpha: float, iterations: int, epochs: int, lr: float, seed: int):
    """Algorithm 1 with one step over the whole set an epoch; returns D_T's size in each iteration and every loss."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0)
    data, sizes, losses = gold_pairs(cut, context, teacher), [], []
    for iteration in range(1, iterations + 1):
        if iteration > 1:
            data = data + rollout_pairs(cut, context, student, teacher, seed, iteration)
        sizes.append(len(data))
        for _ in range(epochs):
            loss = objective(student, data, alpha)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
    return sizes, losses
