"""The measures by exhaustive enumeration on a tiny vocabulary: every continuation, weighted by its probability."""

import itertools

import torch


@torch.no_grad()
def distribution(model, tokens: list[int]) -> torch.Tensor:
    """p(. | tokens), float64."""
    return model(input_ids=torch.tensor([tokens])).logits[0, -1].double().softmax(-1)


def expected(model, context: list[int], horizon: list[int], vocab_size: int, teacher=None) -> dict[str, list[float]]:
    """Exact expectations at every step: free-running CE, and KL(teacher || model) on own and on true prefixes."""
    free, own, gold = [], [], []
    for step, true in enumerate(horizon):
        free_step = own_step = 0.0
        for prefix in itertools.product(range(vocab_size), repeat=step):
            weight, tokens = 1.0, list(context)
            for token in prefix:
                weight *= float(distribution(model, tokens)[token])
                tokens.append(token)
            p = distribution(model, tokens)
            free_step -= weight * float(p[true].log())
            if teacher is not None:
                own_step += weight * kl(distribution(teacher, tokens), p)
        free.append(free_step)
        own.append(own_step)
        if teacher is not None:
            tokens = context + horizon[:step]
            gold.append(kl(distribution(teacher, tokens), distribution(model, tokens)))
    return {"free_running": free, "own": own, "gold": gold}


def kl(p: torch.Tensor, q: torch.Tensor) -> float:
    return float((p * (p.log() - q.log())).sum())


def perplexity_nats(model, documents: list[list[int]], context_length: int) -> float:
    """A loop over every token that has H tokens before it."""
    values = [
        -float(distribution(model, document[t - context_length : t])[document[t]].log())
        for document in documents
        for t in range(context_length, len(document))
    ]
    return sum(values) / len(values)
