"""LM heads of tiny models, and hidden states with labels for them."""

import torch

from trl_exbias.core.modeling import LMHead

from .tiny import tiny_model


N, V = 23, 260


def head_of(architecture: str, seed: int, bias: bool = False, vocab_size: int = V, **config) -> LMHead:
    model = tiny_model(architecture, vocab_size=vocab_size, seed=seed, tie_word_embeddings=False, **config)
    if bias:
        model.lm_head.bias = torch.nn.Parameter(torch.randn(vocab_size))
    return LMHead(model)


def inputs(student: LMHead, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, 32, generator=generator).requires_grad_()
    labels = torch.randint(V, (N,), generator=generator)
    hard, soft = torch.rand(2, N, generator=generator)
    teacher_hidden = torch.randn(N, 32, generator=generator)
    return hidden, labels, teacher_hidden, hard, soft


def gradients(loss, hidden, student):
    parameters = [p for p in (student.projection.weight, student.projection.bias) if p is not None]
    return torch.autograd.grad(loss, [hidden, *parameters])
