"""Scoring hard and soft labels inside the wrapped model's forward."""

from typing import Any

import torch

from ..core.distillation import DistillationScores, distillation_scores
from ..core.layout import lay_out
from ..core.modeling import LMHead, backbone
from ..core.sharding import gathered
from ..core.soft_targets import SoftTarget
from ..core.upstream import forward_redirection
from ..loop.iterative import IterativeSFTTrainer


class DistillingTrainer(IterativeSFTTrainer):
    """An [`IterativeSFTTrainer`] that can score soft labels. A subclass says which, and with which weights."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._forward_redirection = forward_redirection()

    def distil(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        labels: torch.Tensor,
        target: SoftTarget,
        weights: tuple[torch.Tensor, torch.Tensor],
        temperature: float = 1.0,
        label_head: LMHead | None = None,
    ) -> DistillationScores:
        """
        The scores of the labelled positions of a batch; see [`distillation_scores`].

        Args:
            inputs (`dict`): The batch without its labels.
            labels (`torch.Tensor` of shape `(rows, length)`): -100 where a position is not scored.
            weights (`tuple` of two `torch.Tensor` of shape `(N,)`): Weights of hard and soft labels at the scored positions.
            label_head ([`LMHead`], *optional*): Read along with the policy's, and gathered where it is sharded.
        """
        scored = labels != -100
        return DistillationScores(
            *self._forward_redirection(
                model,
                self.accelerator.unwrap_model(model),
                self._score,
                lay_out(inputs, self.model),
                scored,
                labels[scored],
                target,
                *weights,
                temperature,
                label_head,
            )
        )

    def _score(
        self,
        inputs: dict[str, Any],
        scored: torch.Tensor,
        labels: torch.Tensor,
        target: SoftTarget,
        hard_weights: torch.Tensor,
        soft_weights: torch.Tensor,
        temperature: float,
        label_head: LMHead | None,
    ) -> tuple[torch.Tensor, ...]:
        """Runs inside the wrapped model's forward; returns [`DistillationScores`]' fields."""
        head = LMHead(self.model)
        # The redirection steps around the forward that accelerate wrapped for mixed precision.
        with self.accelerator.autocast():
            hidden = backbone(self.model)(**inputs, use_cache=False).last_hidden_state
            with gathered(head.projection, *([] if label_head is None else [label_head.projection])):
                scores = distillation_scores(
                    hidden[scored], head, labels, target, hard_weights, soft_weights, temperature
                )
        # A tuple: DeepSpeed finds the tensors of nothing else, and would not gather weights for their backward.
        return tuple(vars(scores).values())
