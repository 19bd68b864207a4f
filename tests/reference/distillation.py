"""DaD-DAgger's losses, slowly: one position at a time, the whole vocabulary, straight from Pozzi 2025 Eq. 5-9."""

import math

import torch


def teacher_distribution(teacher, tokens: list[int], temperature: float = 1.0) -> torch.Tensor:
    """p*(. | tokens), float64."""
    with torch.no_grad():
        logits = teacher(input_ids=torch.tensor([tokens], device=teacher.device)).logits[0, -1].double()
    return (logits / temperature).softmax(-1)


def position_loss(logits: torch.Tensor, label: int, teacher: torch.Tensor, alpha: float, temperature: float = 1.0):
    """alpha NLL + (1 - alpha) tau^2 CE at one position: `logits` of the student `(V,)`, `teacher` its distribution."""
    nll = -logits.double().log_softmax(-1)[label]
    cross_entropy = -(teacher * (logits.double() / temperature).log_softmax(-1)).sum()
    return alpha * nll + (1 - alpha) * temperature**2 * cross_entropy


def dense_loss(head, hidden: torch.Tensor, labels, teacher, hard, soft, temperature: float = 1.0) -> torch.Tensor:
    """The sum over positions, each with its own weights, from the logits that `head` makes of all of them."""
    logits = head(hidden)
    return sum(
        hard[i] * position_loss(logits[i], labels[i], teacher[i], 1.0, temperature)
        + soft[i] * position_loss(logits[i], labels[i], teacher[i], 0.0, temperature)
        for i in range(len(hidden))
    )


def bucketed_cross_entropy(logits: torch.Tensor, teacher: torch.Tensor, k: int) -> torch.Tensor:
    """The cross-entropy over k + 1 events: each of the teacher's k most probable tokens, and any other."""
    top = teacher.topk(k).indices.tolist()
    rest = [v for v in range(len(teacher)) if v not in top]
    student = logits.double().softmax(-1)
    total = -sum(teacher[v] * student[v].log() for v in top)
    if rest and math.fsum(teacher[rest].tolist()) > 0:
        total = total - teacher[rest].sum() * student[rest].sum().log()
    return total


def divergence(q: torch.Tensor, p: torch.Tensor, name: str, beta: float = 0.5) -> torch.Tensor:
    """D(q, p) of two distributions over the same events, in nats; Jensen-Shannon as Agarwal 2024 (GKD) defines it, Eq. 1."""

    def kl(a, b):
        return (a * (a.log() - b.log())).sum()

    m = beta * q + (1 - beta) * p
    return {
        "forward_kl": lambda: kl(q, p),
        "reverse_kl": lambda: kl(p, q),
        "jensen_shannon": lambda: beta * kl(q, m) + (1 - beta) * kl(p, m),
    }[name]()


def bucketed(distribution: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """The distribution over these tokens and, where there are others, one event for any of them."""
    rest = [v for v in range(len(distribution)) if v not in ids]
    parts = [distribution[v] for v in ids] + ([distribution[rest].sum()] if rest else [])
    return torch.stack(parts)
