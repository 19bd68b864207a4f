"""
The distillation loss from hidden states in chunks against the same loss from full logits, and its other divergences against
the cross-entropy: time and peak memory.
"""

import sys
from functools import partial

import torch
from torch import nn

from trl_exbias.core.distillation import distillation_scores
from trl_exbias.core.divergences import DIVERGENCES, FORWARD_KL, Divergence
from trl_exbias.core.modeling import LMHead
from trl_exbias.core.soft_targets import DenseTarget

from .common import alternate, peak_extra_bytes, print_peak, report


POSITIONS, VOCAB, HIDDEN, ALPHA = 1024, 49152, 576, 0.5


class _Head(LMHead):
    """An LM head without a model around it."""

    def __init__(self):
        self.projection, self.scale, self.softcap = nn.Linear(HIDDEN, VOCAB, bias=False), 1.0, None
        self._root = None


def contestants() -> dict[str, callable]:
    """Forward and backward of each, to the hidden states and the student's head."""
    torch.manual_seed(0)
    student, teacher = _Head(), _Head()
    hidden = torch.randn(POSITIONS, HIDDEN, requires_grad=True)
    teacher_hidden, labels = torch.randn(POSITIONS, HIDDEN), torch.randint(VOCAB, (POSITIONS,))
    weights = torch.full((POSITIONS,), 1 / POSITIONS)

    def chunked(divergence=FORWARD_KL):
        target = Divergence(divergence).between(DenseTarget(teacher_hidden, teacher, VOCAB))
        with torch.no_grad():
            hard, soft = ALPHA * weights, (1 - ALPHA) * weights
        return _backward(distillation_scores(hidden, student, labels, target, hard, soft).loss)

    def full():
        log_probs = student(hidden).log_softmax(-1)
        with torch.no_grad():
            probabilities = teacher(teacher_hidden).softmax(-1)
        nll = nn.functional.nll_loss(log_probs, labels)
        cross_entropy = -torch.linalg.vecdot(probabilities, log_probs).mean()
        return _backward(ALPHA * nll + (1 - ALPHA) * cross_entropy)

    def _backward(loss):
        hidden.grad = student.projection.weight.grad = None
        loss.backward()
        return loss.item(), hidden.grad.norm().item(), student.projection.weight.grad.norm().item()

    return {"full": full, **{name: partial(chunked, name) for name in DIVERGENCES}}


def main(repeats: int = 5) -> None:
    """1,024 positions of SmolLM2's vocabulary and width, float32."""
    runs = contestants()
    values = {name: run() for name, run in runs.items()}
    for chunked, full in zip(values[FORWARD_KL], values["full"], strict=True):
        assert abs(chunked - full) < 1e-4 * abs(full), values
    seconds = alternate(runs, repeats)
    extra = {name: peak_extra_bytes("kd_loss", name) for name in runs}
    title = "KD loss in chunks ÷ from full logits"
    mib = {name: value / 2**20 for name, value in extra.items()}
    report(
        f"{title}, peak extra memory",
        extra[FORWARD_KL] / extra["full"],
        "≤ 0.35",
        f"{mib[FORWARD_KL]:.0f} ÷ {mib['full']:.0f} MiB, equal losses and gradients",
    )
    report(
        f"{title}, time",
        seconds[FORWARD_KL] / seconds["full"],
        "≤ 1.1",
        f"{seconds[FORWARD_KL]:.2f} s ÷ {seconds['full']:.2f} s, forward and backward",
    )
    for name in DIVERGENCES:
        if name != FORWARD_KL:
            title = f"{name} ÷ cross-entropy, in chunks"
            report(
                f"{title}, peak extra memory",
                extra[name] / extra[FORWARD_KL],
                "≤ 1.3",
                f"{mib[name]:.0f} ÷ {mib[FORWARD_KL]:.0f} MiB",
            )
            times = f"{seconds[name]:.2f} s ÷ {seconds[FORWARD_KL]:.2f} s"
            report(f"{title}, time", seconds[name] / seconds[FORWARD_KL], "≤ 1.3", times)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print_peak(contestants()[sys.argv[1]])
    else:
        main()
