"""A joint loss of hard labels on gold and soft ones on everything else."""

from typing import Any

import torch

from ..core.branches import GOLD
from ..core.losses import kind_factors, sum_by_kind
from ..core.modeling import LMHead
from ..core.partial_target import PartialTarget
from ..core.soft_targets import DenseTarget, SoftTarget, TopKTarget
from .distilling import DistillingTrainer


class SoftlyScoringTrainer(DistillingTrainer):
    """
    A [`DistillingTrainer`] that, with `soft_labels`, minimises `mean over all positions j of D(q_j, p_θ(· | x, z_<j))` on its
    rollouts, next to the gold term. The distributions q come with the batch, under `soft_labels`.
    """

    #: The head that the labels' hidden states were read with; none where they are the top k.
    _label_head: LMHead | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._labels_softly = self.args.soft_labels and not self.args.is_plain_sft

    def score_branches(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        kinds: torch.Tensor,
        weights: torch.Tensor,
        counts: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        if not self._labels_softly:
            return super().score_branches(model, inputs, kinds, weights, counts)
        inputs = dict(inputs)
        labels, stored = inputs.pop("shift_labels"), inputs.pop("soft_labels")
        scored = labels != -100
        own = kinds[scored] != self.kinds.index(GOLD)
        factors = kind_factors(counts, self.loss_terms(), self.kinds)[kinds[scored]] * weights[scored]
        target = PartialTarget(self.args.soft_divergence.between(self._soft_target(stored)), own)
        scores = self.distil(model, inputs, labels, target, (factors * ~own, factors * own))
        losses = torch.zeros(labels.shape, device=scores.nll.device)
        losses[scored] = torch.where(own, scores.soft, scores.nll).float()
        number = own.sum()
        sums = {
            "entropy": scores.entropy.sum(),
            "mean_token_accuracy": scores.is_top1.sum(),
            "kl": torch.stack([scores.kl.sum(), number]),
        }
        return scores.loss, sum_by_kind(losses * weights, kinds, len(self.kinds)), sums

    def _soft_target(self, stored: dict[str, torch.Tensor]) -> SoftTarget:
        vocab_size = LMHead(self.model).vocab_size
        if "ids" in stored:
            return TopKTarget(**stored, vocab_size=vocab_size)
        # A batch of rows without an own answer has no labels, and the target is not asked for any.
        hidden = stored.get("hidden", torch.zeros(0))
        return DenseTarget(hidden, self._label_head, vocab_size)  # type: ignore[arg-type]  # there where labels are hidden states
