import pytest
import torch

from trl_exbias.core.losses import LossTerm, count_labels, count_terms, joint_loss, sum_by_kind


KINDS = ("gold", "mixed", "other")


def test_a_hand_worked_joint_loss():
    """
    Two rows; gold losses 1, 2, 3 (mean 2), mixed losses 4, 8 (mean 6), none of the third kind.

    J = 1 · 2 + 0.5 · 6 = 5.
    """
    kinds = torch.tensor([[0, 0, -1, 1], [0, 1, -1, -1]])
    losses = torch.tensor([[1.0, 2.0, 100.0, 4.0], [3.0, 8.0, 100.0, 100.0]])
    assert count_labels(kinds, 3).tolist() == [3, 2, 0]
    sums = sum_by_kind(losses, kinds, 3)
    assert sums.tolist() == [6.0, 12.0, 0.0]
    terms = [LossTerm(("gold",)), LossTerm(("mixed",), 0.5), LossTerm(("other",), 7.0)]
    counts = count_terms({"branch_kinds": kinds}, terms, KINDS)
    assert counts.tolist() == [3, 2, 0]
    assert joint_loss(sums, counts, terms, KINDS).item() == 5.0


def test_kinds_of_one_term_share_one_mean():
    """(6 + 12) / (3 + 2) = 3.6, not 2 + 6."""
    loss = joint_loss(torch.tensor([6.0, 12.0, 0.0]), torch.tensor([5]), [LossTerm(("gold", "mixed"))], KINDS)
    assert loss.item() == pytest.approx(3.6)


def test_micro_batches_sum_to_the_loss_of_the_whole_batch():
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(8, 20, generator=generator)
    kinds = torch.randint(-1, 3, (8, 20), generator=generator)
    terms = [LossTerm(("gold",), 1.0), LossTerm(("mixed", "other"), 0.3)]
    counts = count_terms({"branch_kinds": kinds}, terms, KINDS)
    assert counts.tolist() == [int((kinds == 0).sum()), int((kinds > 0).sum())]
    whole = joint_loss(sum_by_kind(losses, kinds, 3), counts, terms, KINDS)
    parts = [joint_loss(sum_by_kind(losses[i : i + 1], kinds[i : i + 1], 3), counts, terms, KINDS) for i in range(8)]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)


def test_no_label_at_all_is_a_finite_zero_with_a_gradient():
    logits = torch.randn(2, 3, requires_grad=True)
    kinds = torch.full((2, 3), -1)
    loss = joint_loss(sum_by_kind(logits, kinds, 3), torch.tensor([0]), [LossTerm(("gold",))], KINDS)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros(2, 3))
