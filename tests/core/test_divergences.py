"""Divergences in chunks against their definitions, and against TRL's."""

import pytest
import torch
from trl.experimental.gkd import GKDTrainer
from trl.trainer.distillation_trainer import _chunked_divergence_loss

from trl_exbias.core.distillation import distillation_scores
from trl_exbias.core.divergences import Divergence, divergence_problems
from trl_exbias.core.soft_targets import DenseTarget, TopKTarget, top_k_of

from ..heads import N, V, gradients, head_of, inputs
from ..reference.distillation import bucketed, divergence


REVERSE, JSD = Divergence("reverse_kl"), Divergence("jensen_shannon")
DIVERGENCES = [REVERSE, JSD, Divergence("jensen_shannon", 0.1), Divergence("jensen_shannon", 0.9)]
IDS = [f"{which.name}-{which.beta}" for which in DIVERGENCES]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Several chunks, the last one shorter, and several pieces of each."""
    monkeypatch.setattr("trl_exbias.core.distillation._CHUNK_ELEMENTS", {"cpu": 7 * V})
    monkeypatch.setattr("trl_exbias.core.distillation._PIECE_ELEMENTS", {"cpu": 3 * V})


def assert_equal(found, expected, hidden, student):
    torch.testing.assert_close(found.loss, expected.float(), rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients(found.loss, hidden, student), gradients(expected, hidden, student), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("which", DIVERGENCES, ids=IDS)
@pytest.mark.parametrize(
    ("architecture", "options"), [("qwen2", {"bias": True}), ("gemma2", {})], ids=["bias", "softcap"]
)
def test_chunks_equal_the_definition_forward_and_backward(which, architecture, options, temperature):
    student, teacher = head_of(architecture, 0, **options), head_of("qwen2", 1)
    hidden, labels, teacher_hidden, hard, soft = inputs(student)
    q = (teacher(teacher_hidden).detach().double() / temperature).softmax(-1)
    logits = student(hidden).double()
    p = (logits / temperature).softmax(-1)
    values = [temperature**2 * divergence(q[i], p[i], which.name, which.beta) for i in range(N)]
    nll = -logits.log_softmax(-1)[range(N), labels]
    expected = sum(hard[i] * nll[i] + soft[i] * values[i] for i in range(N))
    target = which.between(DenseTarget(teacher_hidden, teacher, V))
    found = distillation_scores(hidden, student, labels, target, hard, soft, temperature)
    assert_equal(found, expected, hidden, student)
    torch.testing.assert_close(found.soft, torch.stack(values).detach().float(), rtol=1e-5, atol=1e-5)
    forward = [temperature**2 * divergence(q[i], p[i], "forward_kl") for i in range(N)]
    torch.testing.assert_close(found.kl, torch.stack(forward).detach().float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [1, 5, V])
@pytest.mark.parametrize("which", DIVERGENCES, ids=IDS)
def test_of_the_top_k_the_rest_is_one_event(which, k):
    student, teacher = head_of("qwen2", 0), head_of("qwen2", 1)
    hidden, labels, teacher_hidden, _, soft = inputs(student)
    q, p = teacher(teacher_hidden).detach().double().softmax(-1), student(hidden).double().softmax(-1)
    top = [row.topk(k).indices.tolist() for row in q]
    expected = sum(
        soft[i] * divergence(bucketed(q[i], top[i]), bucketed(p[i], top[i]), which.name, which.beta) for i in range(N)
    )
    target = which.between(TopKTarget(**top_k_of(teacher, teacher_hidden, k, V, 1.0), vocab_size=V))
    found = distillation_scores(hidden, student, labels, target, torch.zeros(N), soft)
    assert_equal(found, expected, hidden, student)


@pytest.mark.parametrize("size", [V + 12], ids=["padded"])
@pytest.mark.parametrize("which", DIVERGENCES[:2], ids=IDS[:2])
def test_padding_rows_of_the_student_are_cut_off(which, size):
    student, teacher = head_of("qwen2", 0, vocab_size=size), head_of("qwen2", 1)
    hidden, labels, teacher_hidden, _, soft = inputs(student)
    q, p = (x.double().softmax(-1) for x in (teacher(teacher_hidden).detach(), student(hidden)[:, :V]))
    expected = sum(soft[i] * divergence(q[i], p[i], which.name, which.beta) for i in range(N))
    target = which.between(DenseTarget(teacher_hidden, teacher, V))
    assert_equal(distillation_scores(hidden, student, labels, target, torch.zeros(N), soft), expected, hidden, student)


@pytest.mark.parametrize("which", DIVERGENCES, ids=IDS)
def test_labels_equal_to_the_policy_have_no_divergence_and_no_gradient(which):
    student = head_of("qwen2", 0)
    hidden, labels, _, _, soft = inputs(student)
    target = which.between(DenseTarget(hidden.detach(), student, V))
    found = distillation_scores(hidden, student, labels, target, torch.zeros(N), soft)
    assert found.soft.abs().max() < 1e-5 and found.kl.abs().max() < 1e-5
    for gradient in gradients(found.loss, hidden, student):
        assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("which", DIVERGENCES, ids=IDS)
def test_distributions_far_apart_stay_finite(which):
    """Log-probabilities down to −1000, which no probability in float32 can hold."""
    student, teacher = head_of("qwen2", 0), head_of("qwen2", 1)
    with torch.no_grad():
        for head in (student, teacher):
            head.projection.weight.mul_(100)
    hidden, labels, teacher_hidden, _, soft = inputs(student)
    q, p = teacher(teacher_hidden).detach().double().log_softmax(-1), student(hidden).double().log_softmax(-1)
    assert min(q.min(), p.min()) < -200
    target = which.between(DenseTarget(teacher_hidden, teacher, V))
    found = distillation_scores(hidden, student, labels, target, torch.zeros(N), soft)
    if which is REVERSE:
        expected = (p.exp() * (p - q)).sum(-1)
        torch.testing.assert_close(found.soft, expected.detach().float(), rtol=1e-4, atol=1e-3)
    for gradient in gradients(found.loss, hidden, student):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("which", [Divergence(), *DIVERGENCES], ids=["forward_kl", *IDS])
def test_the_numbers_are_trls(which):
    """`DistillationTrainer`'s and `GKDTrainer`'s: their β is 0 for forward and 1 for reverse KL; both take plain means."""
    beta = {"forward_kl": 0.0, "reverse_kl": 1.0}.get(which.name, which.beta)
    student, teacher = head_of("qwen2", 0), head_of("qwen2", 1)
    hidden, labels, teacher_hidden, *_ = inputs(student)
    theirs, *_ = _chunked_divergence_loss(
        hidden.unsqueeze(0),
        teacher_hidden.unsqueeze(0),
        student.projection.weight,
        teacher.projection.weight,
        torch.ones(1, N),
        beta,
    )
    target = which.between(DenseTarget(teacher_hidden, teacher, V))
    found = distillation_scores(hidden, student, labels, target, torch.zeros(N), torch.full((N,), 1 / N))
    # TRL's forward KL has the teacher's entropy in it, which ours leaves out; neither has a gradient of it.
    ours = found.kl.mean() if which.name == "forward_kl" else found.loss
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients(found.loss, hidden, student), gradients(theirs, hidden, student), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    gkd = GKDTrainer.generalized_jsd_loss(student(hidden)[None], teacher(teacher_hidden)[None], labels[None], beta)
    torch.testing.assert_close(ours, gkd, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("kl", 0.5), "`divergence` must be one of forward_kl, reverse_kl, jensen_shannon, got 'kl'"),
        (("jensen_shannon", 1.0), r"`jsd_beta` must be in \(0, 1\), got 1.0"),
        (("jensen_shannon", "0.5"), r"`jsd_beta` must be in \(0, 1\), got '0.5'"),
        (("reverse_kl", 0.3), "`jsd_beta=0.3` is of `divergence='jensen_shannon'`, not of 'reverse_kl'"),
        (("reverse_kl", 0.5, "alpha=1"), "`divergence='reverse_kl'` is of soft labels, and `alpha=1` has none"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    (problem,) = divergence_problems(*settings)
    import re

    assert re.search(message, problem)


@pytest.mark.parametrize("settings", [("forward_kl", 0.5, "alpha=1"), ("jensen_shannon", 0.1), ("reverse_kl", 0.5)])
def test_possible_settings_are_not(settings):
    assert divergence_problems(*settings) == []
