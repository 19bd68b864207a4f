"""Hard and soft labels scored from hidden states, in chunks: no logits tensor of all positions is ever held.

For every scored position i with hard label w_i, teacher distribution p*_i and policy p_θ (softmax of the logits):

    NLL_i  = −log p_θ(w_i)                                  (Pozzi 2025, Eq. 5)
    CE_i   = −τ² Σ_v p*_i(v) log p_θ(v)   at temperature τ   (Pozzi 2025, Eq. 6–7; τ = 1 is the paper's)
    loss   = Σ_i  hard_i · NLL_i + soft_i · CE_i

CE is the KL divergence KL(p*‖p_θ) except for the teacher's entropy, which has no gradient; `divergences.py` has others.

The gradient of a chunk's logits is known as soon as they are, so it is taken on the way forward and the logits are
forgotten; the backward pass only scales what was kept (the gradient of the hidden states and of the LM head).

Matrix products want many positions at a time, so that weights are read seldom. What comes between them wants few on a CPU, so
that the dozen passes over their logits stay in its cache: a chunk is scored a piece at a time.

Shapes: N scored positions, H hidden size, V vocabulary, K top-k.
"""

from dataclasses import dataclass
from typing import Any

import torch

from .modeling import LMHead
from .soft_targets import SoftTarget, row_dot


# Logits of one chunk, and of one piece of it; away from CPUs, a chunk is one piece.
_CHUNK_ELEMENTS = {"cpu": 1 << 23}
_CHUNK_ELEMENTS_ELSEWHERE = 1 << 26
_PIECE_ELEMENTS = {"cpu": 1 << 19}


@dataclass(frozen=True)
class DistillationScores:
    """
    Args:
        loss (`torch.Tensor`): The scalar of the module's docstring, with gradient.
        nll, soft, kl (`torch.Tensor` of shape `(N,)`): Nats at each position, without gradient: the losses of hard and of
            soft labels, and `KL(p*‖p_θ)`. `soft` and `kl` carry the factor τ².
        entropy (`torch.Tensor` of shape `(N,)`): The policy's, in nats.
        is_top1 (`torch.Tensor` of shape `(N,)`): Whether the hard label is the policy's most probable token.
    """

    loss: torch.Tensor
    nll: torch.Tensor
    soft: torch.Tensor
    kl: torch.Tensor
    entropy: torch.Tensor
    is_top1: torch.Tensor


def distillation_scores(
    hidden: torch.Tensor,
    head: LMHead,
    labels: torch.Tensor,
    target: SoftTarget,
    hard_weights: torch.Tensor,
    soft_weights: torch.Tensor,
    temperature: float = 1.0,
) -> DistillationScores:
    """
    The weighted sum of hard labels' NLL and soft labels' loss at N positions.

    Args:
        hidden (`torch.Tensor` of shape `(N, H)`): The policy's last hidden states.
        head ([`LMHead`]): The policy's.
        labels (`torch.Tensor` of shape `(N,)`): Hard labels.
        target ([`SoftTarget`]): Soft labels.
        hard_weights, soft_weights (`torch.Tensor` of shape `(N,)`): Factors of each position's two losses.
        temperature (`float`, *optional*, defaults to `1.0`): τ, of both distributions.
    """
    projection = head.projection
    return DistillationScores(
        *_Distillation.apply(
            hidden.to(projection.weight.device),
            projection.weight,
            projection.bias,
            head,
            labels,
            target,
            hard_weights.float(),
            soft_weights.float(),
            temperature,
        )
    )


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        head: LMHead,
        labels: torch.Tensor,
        target: SoftTarget,
        hard_weights: torch.Tensor,
        soft_weights: torch.Tensor,
        temperature: float,
    ) -> tuple[torch.Tensor, ...]:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden) if wants_hidden else None
        # Summed in float32: a chunk's part may be too small for half precision to see.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wants_bias else None
        scores = torch.zeros(5, len(hidden), device=hidden.device)
        for rows in _chunks(len(hidden), weight):
            grad, scores[:, rows] = _score_chunk(
                torch.nn.functional.linear(hidden[rows], weight, bias),
                hidden.dtype,
                head,
                labels,
                target,
                rows,
                (hard_weights, soft_weights),
                temperature,
            )
            if not any(ctx.needs_input_grad[:3]):
                continue
            if grad_hidden is not None:
                grad_hidden[rows] = grad @ weight
            if grad_weight is not None:
                if grad.dtype == torch.float32:
                    grad_weight.addmm_(grad.T, hidden[rows])
                else:
                    grad_weight += grad.T @ hidden[rows]
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            del grad  # before the next chunk's logits
        ctx.gradients = [
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if bias is None or grad_bias is None else grad_bias.to(bias.dtype),
        ]
        nll, soft, kl, entropy, is_top1 = scores
        loss = (hard_weights * nll + soft_weights * soft).sum()
        ctx.mark_non_differentiable(nll, soft, kl, entropy, is_top1)
        return loss, nll, soft, kl, entropy, is_top1

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        # Scaled in place: a second gradient of the LM head would be the largest tensor here. So it goes once only.
        assert ctx.gradients is not None, "backward a second time through the same loss"
        gradients, ctx.gradients = ctx.gradients, None
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(grad_loss)
        return (*gradients, None, None, None, None, None, None)


def _score_chunk(
    raw: torch.Tensor,
    dtype: torch.dtype,
    head: LMHead,
    labels: torch.Tensor,
    target: SoftTarget,
    rows: slice,
    weights: tuple[torch.Tensor, torch.Tensor],
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Gradient of a chunk's weighted loss with respect to what the projection gives, and the five scores `(5, n)`.

    Args:
        raw (`torch.Tensor` of shape `(n, V)`): What the projection gives. Its memory is the gradient's where the types allow.
        dtype (`torch.dtype`): The gradient's.
    """
    grad = raw if raw.dtype == dtype else torch.empty_like(raw, dtype=dtype)
    scores = torch.empty(5, len(raw), device=raw.device)
    with target.ahead(rows):
        for piece in _pieces(rows, raw):
            places = slice(piece.start - rows.start, piece.stop - rows.start)
            logits = head.finish(raw[places])
            hard, soft = (weight[piece] for weight in weights)
            of_piece, scores[:, places] = _score_piece(logits, labels[piece], target, piece, hard, soft, temperature)
            # In the place of its logits, which nobody reads again.
            grad[places] = head.finish_backward(of_piece, logits)
    return grad, scores


def _score_piece(
    logits: torch.Tensor,
    labels: torch.Tensor,
    target: SoftTarget,
    rows: slice,
    hard_weights: torch.Tensor,
    soft_weights: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the piece's weighted loss with respect to its logits `(n, V)`, and the five scores `(5, n)`."""
    labels = labels.unsqueeze(-1)
    top1 = logits.argmax(-1, keepdim=True) == labels
    log_probs = logits - logits.logsumexp(-1, keepdim=True)
    nll = -log_probs.gather(-1, labels).squeeze(-1)
    probabilities = log_probs.exp()
    entropy = -row_dot(probabilities, log_probs)
    shared = target.vocab_size
    softened = temperature != 1.0 or shared < logits.size(-1)
    if softened:
        soft_log_probs = (logits[:, :shared] / temperature).log_softmax(-1)
        teacher = target.chunk(rows, soft_log_probs, temperature)
        soft_grad = soft_log_probs.exp_().sub_(teacher.probabilities)
        grad = probabilities.mul_(hard_weights.unsqueeze(-1))
        # τ² from the loss, 1/τ from the softened logits.
        grad[:, :shared] += soft_grad.mul_((soft_weights * temperature).unsqueeze(-1))
    else:
        teacher = target.chunk(rows, log_probs, temperature)
        grad = probabilities.mul_((hard_weights + soft_weights).unsqueeze(-1))
        grad.sub_(teacher.probabilities.mul_(soft_weights.unsqueeze(-1)))
    grad.scatter_add_(-1, labels, -hard_weights.unsqueeze(-1))
    factor = temperature**2
    return grad, torch.stack([nll, factor * teacher.loss, factor * teacher.kl, entropy, top1.squeeze(-1).float()])


def _chunks(rows: int, weight: torch.Tensor) -> list[slice]:
    elements = _CHUNK_ELEMENTS.get(weight.device.type, _CHUNK_ELEMENTS_ELSEWHERE)
    return _slices(0, rows, max(1, elements // weight.size(0)))


def _pieces(rows: slice, logits: torch.Tensor) -> list[slice]:
    elements = _PIECE_ELEMENTS.get(logits.device.type, logits.numel())
    return _slices(rows.start, rows.stop, max(1, elements // logits.size(1)))


def _slices(start: int, stop: int, step: int) -> list[slice]:
    return [slice(begin, min(begin + step, stop)) for begin in range(start, stop, step)]
