"""The joint objectives straight from the equations: one forward for each sequence, one log-softmax for each token."""

import torch

from .distillation import divergence


def sequence_nll(model, context: list[int], tokens: list[int], labels: list[int]) -> list[torch.Tensor]:
    """−log p(label_j | context, tokens_<j) for every label that is not -100."""
    logits = model(torch.tensor([context + tokens], device=model.device)).logits[0].float()
    return [-logits[len(context) + j - 1].log_softmax(-1)[label] for j, label in enumerate(labels) if label != -100]


def mean(values: list[torch.Tensor]) -> torch.Tensor:
    """The token mean of a set; an empty set is zero."""
    return torch.stack(values).mean() if values else torch.zeros(())


def sft(model, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Cen 2024 Eq. 1 over (x, y), as a token mean."""
    return mean([nll for x, y in rows for nll in sequence_nll(model, x, y, y)])


def bash(model, rows: list[tuple[list[int], list[int], list[int]]]) -> torch.Tensor:
    """Cen 2024 Algorithm 1: J_SFT + J_BASH over (x, y, ŷ); Eq. 5: gold labels after the mixed prefix."""
    mixed = mean([nll for x, y, y_hat in rows for nll in sequence_nll(model, x, y_hat, y)])
    return sft(model, [(x, y) for x, y, _ in rows]) + mixed


def rac(model, rows: list[tuple[list[int], list[int], list[int], list[int]]]) -> torch.Tensor:
    """Cen 2024 Algorithm 2: J_SFT + J_RAC over (x, y, z, z̄); Eq. 7: only where z̄ differs from z."""
    corrections = []
    for x, _, z, z_bar in rows:
        labels = [new if new != old else -100 for old, new in zip(z, z_bar, strict=True)]
        corrections += sequence_nll(model, x, z, labels)
    return sft(model, [(x, y) for x, y, _, _ in rows]) + mean(corrections)


def log_prob(model, context: list[int], tokens: list[int]) -> torch.Tensor:
    """log p(tokens | context): the sum over its tokens."""
    return -torch.stack(sequence_nll(model, context, tokens, tokens)).sum()


def spin(model, reference, rows: list[tuple[list[int], list[int], list[int]]], lam: float) -> torch.Tensor:
    """SPIN (Chen et al. 2024), Eq. 4.7, over (x, y, z) with the logistic loss l(t) = log(1 + exp(-t)): a mean over pairs."""
    losses = []
    for x, y, z in rows:
        with torch.no_grad():
            of_reference = [log_prob(reference, x, tokens) for tokens in (y, z)]
        gold, own = [log_prob(model, x, tokens) - then for tokens, then in zip((y, z), of_reference, strict=True)]
        losses.append(torch.log(1 + torch.exp(-lam * (gold - own))))
    return torch.stack(losses).mean()


def verified(model, rows: list[tuple[list[int], list[int], list[list[int]]]]) -> torch.Tensor:
    """RFT with SFT, over (x, y, kept answers z): J_SFT + the token mean of -log p(z_j | x, z_<j) over all kept answers."""
    own = mean([nll for x, _, answers in rows for z in answers for nll in sequence_nll(model, x, z, z)])
    return sft(model, [(x, y) for x, y, _ in rows]) + own


def soft_rac(
    model, teacher, rows: list[tuple[list[int], list[int], list[int], list[int]]], name: str, beta: float = 0.5
):
    """
    Soft corrections over (x, y, f(x, y), z): J_SFT + the mean over every position j of every z of D(q_j, p(. | x, z_<j)), with
    q_j the teacher's distribution after f(x, y) and z_<j; and the mean of KL(q‖p) alone. The forward KL stands as its cross-entropy.
    """
    losses, kls = [], []
    for x, _, shown, z in rows:
        for j in range(len(z)):
            with torch.no_grad():
                q = teacher(torch.tensor([shown + z[:j]])).logits[0, -1].double().softmax(-1)
            p = model(torch.tensor([x + z[:j]])).logits[0, -1].double().softmax(-1)
            kls.append(divergence(q, p, "forward_kl"))
            losses.append(-(q * p.log()).sum() if name == "forward_kl" else divergence(q, p, name, beta))
    return sft(model, [(x, y) for x, y, *_ in rows]) + mean(losses), mean(kls)


def gated_bash(model, rows: list[tuple[list[int], list[int], list[int], list[float]]]) -> torch.Tensor:
    """BASH over (x, y, ŷ, w) with the gold label at position j weighed by w_j; the mean still counts each label once."""
    mixed = [
        w * nll
        for x, y, y_hat, weights in rows
        for w, nll in zip(weights, sequence_nll(model, x, y_hat, y), strict=True)
    ]
    return sft(model, [(x, y) for x, y, *_ in rows]) + mean(mixed)
