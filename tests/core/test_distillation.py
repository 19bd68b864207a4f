import pytest
import torch

from trl_exbias.core.distillation import distillation_scores
from trl_exbias.core.soft_targets import DenseTarget, TopKTarget, top_k_of

from ..heads import N, V, gradients, head_of, inputs
from ..reference.distillation import bucketed_cross_entropy, dense_loss, position_loss


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Several chunks, the last one shorter, and several pieces of each."""
    monkeypatch.setattr("trl_exbias.core.distillation._CHUNK_ELEMENTS", {"cpu": 7 * V})
    monkeypatch.setattr("trl_exbias.core.distillation._PIECE_ELEMENTS", {"cpu": 3 * V})


@pytest.mark.parametrize("teacher_architecture", ["qwen2", "gemma2"])  # the second caps its logits
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    ("architecture", "options"),
    [("qwen2", {}), ("qwen2", {"bias": True}), ("gemma2", {}), ("qwen2", {"logits_scaling": 3.0})],
    ids=["plain", "bias", "softcap", "scaled"],
)
def test_chunks_equal_the_full_logits_forward_and_backward(architecture, options, temperature, teacher_architecture):
    student, teacher = head_of(architecture, 0, **options), head_of(teacher_architecture, 1)
    hidden, labels, teacher_hidden, hard, soft = inputs(student)
    probabilities = (teacher(teacher_hidden).double() / temperature).softmax(-1).detach()
    expected = dense_loss(student, hidden, labels, probabilities, hard, soft, temperature)
    target = DenseTarget(teacher_hidden, teacher, V)
    found = distillation_scores(hidden, student, labels, target, hard, soft, temperature)
    torch.testing.assert_close(found.loss, expected.float(), rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients(found.loss, hidden, student), gradients(expected, hidden, student), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_teacher_equal_to_the_student_has_no_divergence_and_no_gradient():
    student = head_of("qwen2", 0)
    hidden, labels, _, _, soft = inputs(student)
    target = DenseTarget(hidden.detach(), student, V)
    found = distillation_scores(hidden, student, labels, target, torch.zeros(N), soft)
    assert found.kl.abs().max() < 1e-5
    for gradient in gradients(found.loss, hidden, student):
        assert gradient.abs().max() < 1e-5


def test_scores_are_those_of_the_full_logits():
    student, teacher = head_of("qwen2", 0), head_of("qwen2", 1)
    hidden, labels, teacher_hidden, hard, soft = inputs(student)
    found = distillation_scores(hidden, student, labels, DenseTarget(teacher_hidden, teacher, V), hard, soft)
    log_probs = student(hidden).detach().log_softmax(-1)
    p = teacher(teacher_hidden).detach().softmax(-1)
    torch.testing.assert_close(found.nll, -log_probs[range(N), labels])
    torch.testing.assert_close(found.soft, -(p * log_probs).sum(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.kl, (p * (p.log() - log_probs)).sum(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.entropy, -(log_probs.exp() * log_probs).sum(-1), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.is_top1.bool(), log_probs.argmax(-1) == labels)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_k_with_k_the_vocabulary_is_the_dense_loss(temperature):
    student, teacher = head_of("qwen2", 0), head_of("qwen2", 1)
    hidden, labels, teacher_hidden, hard, soft = inputs(student)
    top = TopKTarget(**top_k_of(teacher, teacher_hidden, V, V, temperature), vocab_size=V)
    dense = DenseTarget(teacher_hidden, teacher, V)
    a, b = (distillation_scores(hidden, student, labels, t, hard, soft, temperature) for t in (top, dense))
    for name in ("loss", "soft", "kl"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-5)
    for x, y in zip(gradients(a.loss, hidden, student), gradients(b.loss, hidden, student), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [1, 5, 100])
def test_the_tail_is_one_bucket(k):
    student, teacher = head_of("qwen2", 0), head_of("qwen2", 1)
    hidden, labels, teacher_hidden, _, soft = inputs(student)
    probabilities = teacher(teacher_hidden).detach().double().softmax(-1)
    logits = student(hidden)
    expected = sum(soft[i] * bucketed_cross_entropy(logits[i], probabilities[i], k) for i in range(N))
    top = TopKTarget(**top_k_of(teacher, teacher_hidden, k, V, 1.0), vocab_size=V)
    found = distillation_scores(hidden, student, labels, top, torch.zeros(N), soft)
    torch.testing.assert_close(found.loss, expected.float(), rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients(found.loss, hidden, student), gradients(expected, hidden, student), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("student_size", "teacher_size"), [(V, V + 12), (V + 12, V)])
def test_padding_rows_of_either_vocabulary_are_cut_off(student_size, teacher_size):
    student = head_of("qwen2", 0, vocab_size=student_size)
    teacher = head_of("qwen2", 1, vocab_size=teacher_size)
    hidden, labels, teacher_hidden, hard, soft = inputs(student)
    p = teacher(teacher_hidden).detach()[:, :V].double().softmax(-1)
    logits = student(hidden)
    expected = sum(
        hard[i] * position_loss(logits[i], labels[i], torch.zeros(student_size), 1.0)
        + soft[i] * position_loss(logits[i, :V], 0, p[i], 0.0)
        for i in range(N)
    )
    found = distillation_scores(hidden, student, labels, DenseTarget(teacher_hidden, teacher, V), hard, soft)
    torch.testing.assert_close(found.loss, expected.float(), rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients(found.loss, hidden, student), gradients(expected, hidden, student), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_batch_without_positions_is_a_finite_zero():
    student, teacher = head_of("qwen2", 0), head_of("qwen2", 1)
    hidden = torch.zeros(0, 32, requires_grad=True)
    nothing = torch.zeros(0)
    target = DenseTarget(hidden.detach(), teacher, V)
    found = distillation_scores(hidden, student, nothing.long(), target, nothing, nothing)
    assert found.loss == 0
    for gradient in gradients(found.loss, hidden, student):
        assert not gradient.any()
