"""TRL's fused LM head, which runs Triton kernels on a GPU, against dense logits: the loss and every gradient."""

import copy
import functools

import pytest
import torch
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, add_fused_lm_head

from .device import DEVICE, bf16_autocast, distance, flat, on_gpu_or_cpu
from .models import mid_config, mid_policy


# A chunk of positions and one of the vocabulary are passed, on a CPU the latter alone.
ROWS, LENGTH = on_gpu_or_cpu((10, 512), (2, 24))
VOCAB_SIZE = _CHUNKED_LOGPROB_CHUNK_SIZE + on_gpu_or_cpu(9000, 40)


@functools.cache
def batch() -> dict[str, torch.Tensor]:
    """Token ids with labels, a fifth of which are -100."""
    generator = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(VOCAB_SIZE, (2, ROWS, LENGTH), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = -100
    return {"input_ids": ids.to(DEVICE), "shift_labels": labels.to(DEVICE)}


def policy(family: str, dtype: torch.dtype):
    return mid_policy(family, dtype, vocab_size=VOCAB_SIZE, num_hidden_layers=2).train()


def fused(model, output: str = "loss") -> torch.Tensor:
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    return getattr(model(**batch(), fused_lm_head=True), output)


def dense(model) -> torch.Tensor:
    """The mean over labels of −log p, from all logits at once."""
    labels = batch()["shift_labels"]
    logits = model(input_ids=batch()["input_ids"], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)


def loss_and_gradient(loss: torch.Tensor, model) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return loss.item(), flat(model, lambda parameter: parameter.grad)


def test_the_shapes_pass_the_kernels_chunks():
    assert mid_config(vocab_size=VOCAB_SIZE).vocab_size > _CHUNKED_LOGPROB_CHUNK_SIZE
    assert on_gpu_or_cpu(0.8 * TOKEN_CHUNK_SIZE, 0) < ROWS * LENGTH * 0.7


@pytest.mark.quick_on_cpu
@pytest.mark.parametrize("family", ["qwen2", "gemma2"], ids=["plain", "soft-cap"])
def test_in_float32_it_is_the_dense_loss(family):
    model = policy(family, torch.float32)
    expected, exact = loss_and_gradient(dense(model), model)
    found, gradient = loss_and_gradient(fused(model), model)
    assert found == pytest.approx(expected, rel=1e-5)
    assert distance(gradient, exact) < 1e-4


@pytest.mark.quick_on_cpu
@pytest.mark.parametrize("family", ["qwen2", "gemma2"], ids=["plain", "soft-cap"])
@pytest.mark.parametrize("autocasts", [False, True], ids=["weights", "autocast"])
def test_in_bfloat16_it_is_as_near_to_the_exact_loss_as_dense_logits(family, autocasts, record):
    """Both round logits to 8 bits; the fused head also rounds each tile's gradient, as dense logits do theirs."""
    model = policy(family, torch.float32 if autocasts else torch.bfloat16)
    exact_model = copy.deepcopy(model).float()
    expected, exact = loss_and_gradient(dense(exact_model), exact_model)
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocasts):
        loss = dense(model)
    dense_loss, dense_gradient = loss_and_gradient(loss, model)
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocasts):
        loss = fused(model)
    found, gradient = loss_and_gradient(loss, model)
    off = {
        "dense": (abs(dense_loss / expected - 1), distance(dense_gradient, exact)),
        "fused": (abs(found / expected - 1), distance(gradient, exact)),
    }
    record(**off)
    assert off["fused"][0] < max(2 * off["dense"][0], 2**-9)
    assert off["fused"][1] < 2 * off["dense"][1] + 2**-9
    assert off["dense"][1] < 0.1


@pytest.mark.quick_on_cpu
@torch.no_grad()
def test_entropy_and_accuracy_are_those_of_the_dense_logits():
    model, labels = policy("gemma2", torch.float32), batch()["shift_labels"]
    scored = labels != -100
    logits = model(input_ids=batch()["input_ids"], use_cache=False).logits[scored]
    log_probs = logits.log_softmax(-1)
    torch.testing.assert_close(
        fused(model, "entropy")[scored], -(log_probs.exp() * log_probs).sum(-1), rtol=1e-4, atol=1e-5
    )
    # A tie within rounding may go either way.
    assert ((logits.argmax(-1) == labels[scored]) == fused(model, "is_top1")[scored].bool()).float().mean() > 0.999


@pytest.mark.quick_on_cpu
def test_a_batch_without_labels_has_a_finite_zero_for_every_gradient():
    model = policy("qwen2", torch.float32)
    add_fused_lm_head(model, outputs=("log_probs",))
    with bf16_autocast():
        nothing = torch.full_like(batch()["shift_labels"], -100)
        output = model(input_ids=batch()["input_ids"], shift_labels=nothing, fused_lm_head=True)
    loss, gradient = loss_and_gradient(output.log_probs.sum(), model)
    assert loss == 0.0 and not gradient.any()
