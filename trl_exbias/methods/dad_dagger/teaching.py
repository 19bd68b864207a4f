"""Training on a teacher's distribution: where the teacher is, when it is loaded, and the loss of its labels."""

import contextlib
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from ...core.gates import teacher_trust
from ...core.losses import kind_factors, sum_by_kind
from ...core.modeling import LMHead
from ...core.sharding import loaded_whole, shard_for_inference
from ..distilling import DistillingTrainer
from .checks import check_head, check_router, vocab_shared_with
from .scoring import soft_target
from .served_teacher import ServedTeacher
from .several_teachers import SeveralTeachers, each_of
from .teacher import Teacher


class TaughtTrainer(DistillingTrainer):
    """
    A [`DistillingTrainer`] whose soft labels are a teacher's: from disk, or of every step.

    Args:
        teacher ([`Teacher`], [`ServedTeacher`] or [`SeveralTeachers`], *optional*):
            Not loaded yet; `None` for hard labels alone.
        *args, **kwargs: As in [`IterativeSFTTrainer`].

    Raises:
        ValueError: where student and teacher do not go together.
    """

    def __init__(
        self, *args: Any, teacher: Teacher | ServedTeacher | SeveralTeachers | None = None, **kwargs: Any
    ) -> None:
        self.teacher = teacher
        self._resident_teacher: torch.nn.Module | None = None
        super().__init__(*args, **kwargs)
        #: Tokens that student and teacher have in common.
        self.shared_vocab = LMHead(self.model).vocab_size
        if teacher is not None:
            self._set_up_teacher(teacher)

    # Where it is

    def _set_up_teacher(self, teacher: Teacher | ServedTeacher | SeveralTeachers) -> None:
        for each in each_of(teacher):
            if isinstance(each, ServedTeacher):
                each.stop = lambda: self.preemption.asked
            else:
                self._place_teacher(each)
        self.shared_vocab = vocab_shared_with(teacher, self.shared_vocab, len(self._tokenizer))
        check_router(self.args, self.model.config)
        check_head(self.args, LMHead(self.model), self.shared_vocab)

    def _place_teacher(self, teacher: Teacher) -> None:
        teacher.device = self.accelerator.device
        if self.args.cache_teacher:
            # Each process scores branches of its own, at its own pace: the teacher is whole for so long.
            teacher.loading = partial(loaded_whole, self.args)
        else:
            teacher.prepare = self._shard_teacher

    def _shard_teacher(self, model: PreTrainedModel) -> torch.nn.Module:
        model, self._teacher_engine = shard_for_inference(model, self.accelerator)
        return model

    # When it is loaded

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            if isinstance(self.teacher, Teacher) and not self.args.cache_teacher:
                self._resident_teacher = stack.enter_context(self.teacher.loaded())
            try:
                return super().train(resume_from_checkpoint, *args, **kwargs)
            finally:
                self._resident_teacher = None

    def models_in_step(self) -> list[torch.nn.Module]:
        return [self.model, *([self._resident_teacher] if self._resident_teacher is not None else [])]

    # The loss

    def score_branches(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        kinds: torch.Tensor,
        weights: torch.Tensor,
        counts: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        if self.teacher is None:
            return super().score_branches(model, inputs, kinds, weights, counts)
        inputs = dict(inputs)
        labels, stored = inputs.pop("shift_labels"), inputs.pop("soft_labels", None)
        scored = labels != -100
        head = self.teacher.head
        target = soft_target(head, self._resident_teacher, inputs, scored, stored, self.shared_vocab)
        trust, told = teacher_trust(self.args.label_gate, target, labels[scored], kinds[scored] > 0)  # gold is kind 0
        factors = kind_factors(counts, self.loss_terms(), self.kinds)[kinds[scored]] * weights[scored]
        alpha = self.args.alpha
        scores = self.distil(
            model,
            inputs,
            labels,
            self.args.soft_divergence.between(target),
            (alpha * factors * trust, (1 - alpha) * factors),
            self.args.kd_temperature,
            head,
        )
        losses = torch.zeros(labels.shape, device=scores.nll.device)
        # FSDP2 casts what leaves the forward to the mixed precision's type.
        losses[scored] = (alpha * trust * scores.nll + (1 - alpha) * scores.soft).float()
        sums = {
            "entropy": scores.entropy.sum(),
            "mean_token_accuracy": scores.is_top1.sum(),
            "loss/hard": scores.nll.sum(),
            "loss/soft": scores.soft.sum(),
            "kl": scores.kl.sum(),
        }
        return scores.loss, sum_by_kind(losses * weights, kinds, len(self.kinds)), sums | told
