"""The chunked distillation loss on the device against dense logits, and DaD-DAgger's two ways to a teacher's labels."""

import copy

import pytest
import torch
from datasets import Dataset

from trl_exbias import DaDDaggerConfig, DaDDaggerTrainer
from trl_exbias.core import distillation as module
from trl_exbias.core.distillation import distillation_scores
from trl_exbias.core.modeling import LMHead
from trl_exbias.core.soft_targets import DenseTarget, TopKTarget, top_k_of

from ..heads import V, gradients, head_of, inputs
from ..loop.runs import config, logged, trainer
from ..reference.distillation import dense_loss
from ..tiny import VOCAB_SIZE, tiny_model
from .device import DEVICE, ON_CUDA, distance


@pytest.fixture
def _small_chunks(monkeypatch):
    """Several chunks, the last one shorter, whichever device's size counts."""
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", {"cpu": 7 * V})
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS_ELSEWHERE", 7 * V)


def on_device(student: LMHead, teacher: LMHead):
    for head in (student, teacher):
        head.projection.to(DEVICE)
    moved = [tensor.detach().to(DEVICE) for tensor in inputs(student)]
    return [moved[0].requires_grad_(), *moved[1:]]


@pytest.mark.quick_on_cpu
@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"], ids=["plain", "soft-cap"])
@pytest.mark.parametrize("top_k", [None, V], ids=["dense", "top-k"])
def test_in_float32_chunks_equal_the_full_logits(architecture, temperature, top_k):
    student, teacher = head_of(architecture, 0), head_of("qwen2", 1)
    hidden, labels, teacher_hidden, hard, soft = on_device(student, teacher)
    probabilities = (teacher(teacher_hidden).double() / temperature).softmax(-1).detach()
    expected = dense_loss(student, hidden, labels, probabilities, hard, soft, temperature)
    target = DenseTarget(teacher_hidden, teacher, V)
    if top_k is not None:
        target = TopKTarget(**top_k_of(teacher, teacher_hidden, top_k, V, temperature), vocab_size=V)
    found = distillation_scores(hidden, student, labels, target, hard, soft, temperature)
    torch.testing.assert_close(found.loss, expected.float(), rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients(found.loss, hidden, student), gradients(expected, hidden, student), strict=True):
        assert distance(a, b) < 1e-5


@pytest.mark.quick_on_cpu
@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("autocasts", [False, True], ids=["weights", "autocast"])
def test_in_bfloat16_chunks_are_as_near_to_the_exact_loss_as_full_logits(autocasts, temperature, record):
    """Against float32 with the same weights and hidden states, rounded where the policy's are."""
    student, teacher = head_of("qwen2", 0), head_of("qwen2", 1)
    hidden, labels, teacher_hidden, hard, soft = on_device(student, teacher)
    with torch.no_grad():
        hidden, teacher_hidden = (t.bfloat16().float() for t in (hidden, teacher_hidden))
        for head in (student, teacher):
            head.projection.weight.copy_(head.projection.weight.bfloat16())
    hidden.requires_grad_()
    probabilities = (teacher(teacher_hidden).double() / temperature).softmax(-1).detach()
    exact = dense_loss(student, hidden, labels, probabilities, hard, soft, temperature)
    exact_gradients = gradients(exact, hidden, student)
    if not autocasts:
        student, teacher = copy.deepcopy(student), copy.deepcopy(teacher)
        for head in (student, teacher):
            head.projection.bfloat16()
        hidden, teacher_hidden = hidden.detach().bfloat16().requires_grad_(), teacher_hidden.bfloat16()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocasts):
        dense = dense_loss(student, hidden, labels, probabilities, hard, soft, temperature)
        target = DenseTarget(teacher_hidden, teacher, V)
        found = distillation_scores(hidden, student, labels, target, hard, soft, temperature).loss
    off = {
        name: [abs(loss.item() / exact.item() - 1)]
        + [distance(a, b) for a, b in zip(gradients(loss, hidden, student), exact_gradients, strict=True)]
        for name, loss in (("dense", dense), ("chunked", found))
    }
    record(**off)
    for ours, theirs in zip(off["chunked"], off["dense"], strict=True):
        # The chunked loss rounds the gradient of the logits too, and the teacher's logits.
        assert ours < 2 * theirs + 2**-7


@pytest.mark.parametrize("precision", ["float32", "mixed", "bf16"])
@pytest.mark.parametrize("top_k", [None, VOCAB_SIZE], ids=["hidden states", "log-probabilities"])
def test_kept_labels_give_the_losses_of_a_teacher_that_reads_along(tmp_path, precision, top_k, record):
    """Kept labels come from batches of another shape, whose sums round otherwise."""
    texts = [
        "The fox went out on a chilly night.",
        "He prayed to the moon.",
        "To give him light, for he'd many a mile.",
    ]
    losses = {}
    for cache in (True, False):
        args = config(
            DaDDaggerConfig,
            tmp_path / str(cache),
            context_length=12,
            rollout_length=8,
            num_iterations=2,
            num_train_epochs=2,
            cache_teacher=cache,
            teacher_top_k=top_k if cache else None,
            alpha=0.0,
            learning_rate=1e-4,
            use_cpu=not ON_CUDA,
            bf16=precision == "mixed",
        )
        student, teacher = tiny_model(), tiny_model(seed=7)
        if precision == "bf16":
            student, teacher = student.bfloat16(), teacher.bfloat16()
        data = Dataset.from_list([{"text": text} for text in texts])
        done = trainer(DaDDaggerTrainer, args, data, student, teacher_model=teacher)
        done.train()
        losses[cache] = logged(done, "loss")
    assert len(losses[True]) == len(losses[False]) > 2
    record(largest_difference=max(abs(a / b - 1) for a, b in zip(losses[True], losses[False], strict=True)))
    # A teacher's logits that are off by bfloat16's rounding are off by some hundredths of a nat.
    assert losses[True] == pytest.approx(losses[False], rel=1e-5 if precision == "float32" else 0.02)
