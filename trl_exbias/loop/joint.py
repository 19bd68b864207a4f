"""Training on a batch of gold rows with their branches: the layout, the joint loss, and what is logged of it."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from transformers import Trainer
from trl import SFTTrainer

from ..core.block_attention import attention_by_blocks
from ..core.branches import GOLD, ROW
from ..core.collating import BranchCollator
from ..core.generation_config import make_saveable
from ..core.layout import check_shared_context, lay_out
from ..core.losses import LossTerm, count_labels, count_terms, joint_loss, sum_by_kind
from ..core.model_check import complete_fused_head
from ..core.modeling import base_causal_lm, uses_flash_attention, without_attention_plans
from ..core.packed_rows import EXAMPLE_LENGTHS, PackedRowCollator, check_packed_rows
from ..core.packing import break_even_of
from ..core.scored import handing_on, score_labels, scores_all
from ..core.spans import attention_window
from ..core.upstream import note_commit
from .finite import check_loss
from .joint_sums import JointSums


logger = logging.getLogger(__name__)


class JointSFTTrainer(SFTTrainer):
    """
    An [`~trl.SFTTrainer`] that trains on batches of [`JointDataset`] too; where they come from is a subclass's matter.

    A batch without branches is TRL's own, loss and all.
    """

    #: Kinds of branches, besides `"gold"`.
    branch_kinds: tuple[str, ...] = ("rollout",)
    #: Lays out a batch of branches.
    collator_class: type[BranchCollator] = BranchCollator
    data_collator: Any
    _total_train_tokens: int

    def _set_up_branches(self) -> None:
        """To be called once the model, its tokenizer and TRL's collator are there."""
        # Every loss here is a token mean over the global batch; without this, models whose forward takes no loss
        # arguments would fall back to a mean of micro-batch means.
        self.model_accepts_loss_kwargs = True
        self.kinds = (GOLD, *self.branch_kinds)
        common: dict[str, Any] = {
            "pad_token_id": self._tokenizer.pad_token_id,
            "pad_to_multiple_of": self.args.pad_to_multiple_of,
            "break_even": break_even_of(self.model),
        }
        self.data_collator = self.collator_class(
            base=PackedRowCollator(self.data_collator, **common),
            kinds=self.kinds,
            window=attention_window(base_causal_lm(self.model).config),
            **common,
        )
        self._layout_decided = self._rows_decided = False
        self._joint_sums, self._row_sums = JointSums(self.kinds), JointSums(())

    def _set_up_plain_sft(self) -> None:
        """In place of `_set_up_branches`, where there will be none: tags and means as everywhere, all else TRL's."""
        self.model_accepts_loss_kwargs = True
        self.kinds = (GOLD,)
        self._joint_sums, self._row_sums = JointSums(self.kinds), JointSums(())
        self.model.add_model_tags(["sft"])

    def _complete_model(self, given: Any) -> None:
        """What a loaded model lacks for a run: a configuration that can be saved, TRL's head for every cap, and its commit."""
        make_saveable(self.model)
        complete_fused_head(self.model)
        config = base_causal_lm(self.model).config
        if given == config.name_or_path:  # not an adapter's folder, whose revision is another repository's
            note_commit(config, (self.args.model_init_kwargs or {}).get("revision"))

    def loss_terms(self) -> list[LossTerm]:
        """The joint objective: by default one mean over gold labels and one over each other kind's."""
        rollouts = [LossTerm((kind,), self.args.rollout_weight) for kind in self.branch_kinds]
        return [LossTerm((GOLD,), self.args.sft_weight), *rollouts]

    def models_in_step(self) -> list[torch.nn.Module]:
        """The models that read a joint batch: all of them must take its layout."""
        return [self.model]

    def _decide_layout(self) -> None:
        """Branches share the encoding of their context unless something in the way is named here."""
        self._layout_decided = True
        reason = self._wants_own_rows() or self._in_the_way(check_shared_context)
        if reason is not None:
            self.data_collator.shared = False
            # FlashAttention takes rows of any length in one, without a mask.
            self.data_collator.one_row = (
                uses_flash_attention(base_causal_lm(self.model).config)
                and not self.args.neftune_noise_alpha
                and self._in_the_way(check_packed_rows) is None
            )
            logger.warning(
                f"Every branch is trained as a row of its own: {reason}. The loss is the same, at more tokens."
            )
            return
        reason = self._in_the_way(partial(check_shared_context, packed=True))
        if reason is not None:
            self.data_collator.packed = False
            logger.warning(f"Every context is trained in a row of its own: {reason}. The loss is the same.")
        windowed = partial(check_shared_context, windowed=True)
        if self.data_collator.window is not None and self._in_the_way(windowed) is None:
            self.data_collator.window = None  # our mask has the windows itself

    def _decide_rows(self) -> None:
        """Rows without branches are packed unless something in the way is named here."""
        self._rows_decided = True
        reason = self._wants_own_rows()
        if reason is None and self.args.use_liger_kernel:
            reason = "Liger's loss has not been tried with several examples in a row"
        if reason is None and self.accelerator.dispatch_batches:
            reason = "`dispatch_batches` cuts a batch up by its rows"
        if reason is None:
            with self.accelerator.autocast():
                reason = self.data_collator.base.allow(self.model)
        if reason is not None:
            logger.warning(f"Every example of SFT is trained in a row of its own: {reason}. The loss is the same.")

    def _wants_own_rows(self) -> str | None:
        """The setting that goes by the rows of a batch, if there is one."""
        if self.aux_loss_enabled:
            return "the load-balancing loss of a mixture of experts reads a 2-D mask"
        if self.args.neftune_noise_alpha:
            return "NEFTune scales its noise by the length of the row"
        return None

    def _in_the_way(self, check: Callable[[torch.nn.Module], str | None]) -> str | None:
        """What `check` says of the first model of a step that cannot take a layout; `None` if all can."""
        with self.accelerator.autocast():
            return next(filter(None, map(check, self.models_in_step())), None)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        if not batch_samples or "branch_kinds" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        counts = sum(count_terms(batch, self.loss_terms(), self.kinds).to(device) for batch in batch_samples)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        return counts

    def batches_of_step(self, batches: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """The joint micro-batches of an optimizer step, just before it: all are trained on with the same weights."""
        return batches

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches or "branch_kinds" not in batches[0]:
            return batches, num_items
        now = self.batches_of_step(batches)
        return now, num_items if now is batches else self._get_num_items_in_batch(now, device)

    def _prepare_input(self, data: Any) -> Any:
        if not isinstance(self.data_collator, BranchCollator):
            return super()._prepare_input(data)
        # Under DeepSpeed, transformers casts every floating-point input to the training's type, for models that read sounds
        # or pictures. Ours are log-probabilities, weights and a teacher's states: eight bits of them would be another loss.
        if isinstance(data, torch.Tensor) and data.is_floating_point():
            return data.to(self.args.device)
        return super()._prepare_input(data)

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        # Around the backward too: what gradient checkpointing computes again must come from the same kernels. Batches of plain
        # SFT are trained on as `SFTTrainer` would.
        with contextlib.ExitStack() as stack:
            if "branch_kinds" in inputs:
                stack.enter_context(without_attention_plans())
            if "branch_kinds" in inputs or EXAMPLE_LENGTHS in inputs:
                stack.enter_context(attention_by_blocks(self.args.device))
            loss = super().training_step(model, inputs, num_items_in_batch)
        check_loss(loss, inputs.get(ROW), self.state.global_step)
        return loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        inputs = {name: value for name, value in inputs.items() if name != ROW}
        if "branch_kinds" not in inputs:
            return self._plain_loss(model, inputs, return_outputs, num_items_in_batch)
        assert not return_outputs, "joint batches are for training only"
        label_counts = count_labels(inputs["branch_kinds"], len(self.kinds))
        is_global = num_items_in_batch is not None
        counts = num_items_in_batch if is_global else count_terms(inputs, self.loss_terms(), self.kinds)
        kinds, weights = inputs.pop("branch_kinds"), inputs.pop("branch_weights")
        num_tokens = inputs.pop("num_tokens")
        slots = torch.full_like(num_tokens, inputs["input_ids"].numel())
        loss, loss_sums, sums = self.score_branches(model, inputs, kinds, weights, counts)
        sums = {**sums, "padding_rate": torch.stack([slots - num_tokens, slots])}
        # As in SFTTrainer: the counts are of every rank, and DDP averages the gradients over the ranks.
        if self.args.average_tokens_across_devices and is_global:
            loss = loss * (self.accelerator.num_processes // self._tp_size)
        if self.aux_loss_enabled:
            aux_loss = sums.pop("aux_loss")
            loss = loss + self.router_aux_loss_coef * aux_loss / self.current_gradient_accumulation_steps
        self._joint_sums.add(loss_sums, label_counts, num_tokens, (kinds >= 0).sum(), sums)
        return loss

    def _plain_loss(self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool, num_items: Any) -> Any:
        """TRL's loss of rows without branches, and how much of them is padding."""
        if not isinstance(self.data_collator, BranchCollator):
            return super().compute_loss(model, inputs, return_outputs, num_items)
        lengths, tokens_before = inputs.pop(EXAMPLE_LENGTHS, None), self._total_train_tokens
        num_tokens = inputs["attention_mask"].sum() if lengths is None else lengths.sum()
        with contextlib.ExitStack() as stack:
            if not return_outputs and scores_all(inputs["labels"], self.args.torch_compile):
                targets = F.pad(inputs.pop("labels")[:, 1:], (0, 1), value=-100)
                scored = targets != -100
                stack.enter_context(handing_on(self.model, scored))
                inputs["shift_labels"] = targets[scored].unsqueeze(0)
            result = super().compute_loss(model, inputs, return_outputs, num_items)
        if self.model.training:
            # TRL counts the tokens of one row alone where examples share it; ours are counted when they are logged.
            self._total_train_tokens = tokens_before
            slots = torch.full_like(num_tokens, inputs["input_ids"].numel())
            none = num_tokens.new_empty(0)
            self._row_sums.add(
                none, none, num_tokens, slots, {"padding_rate": torch.stack([slots - num_tokens, slots])}
            )
        return result

    def score_branches(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        kinds: torch.Tensor,
        weights: torch.Tensor,
        counts: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """
        The joint loss of a micro-batch.

        Args:
            inputs (`dict`): `input_ids`, `shift_labels`, and what the layout needs; see [`BranchCollator`].
            kinds, weights (`torch.Tensor` of shape `(rows, length)`): Kind and weight of each label.
            counts (`torch.Tensor` of shape `(len(self.loss_terms()),)`): What each loss term is divided by, of the global batch.

        Returns:
            The loss, the summed losses of each kind, and by metric name scalar sums over all labels, or tensors of shape
            `(2,)`: a sum and what it is divided by.
        """
        outputs = score_labels(model, self.model, lay_out(inputs, self.model), self.args.torch_compile)
        token_losses = -outputs.log_probs
        if self.args.loss_type == "dft":
            token_losses = token_losses * outputs.log_probs.exp().detach()
        loss_sums = sum_by_kind(token_losses * weights, kinds, len(self.kinds))
        sums = {"entropy": outputs.entropy.sum(), "mean_token_accuracy": outputs.is_top1.sum()}
        if self.aux_loss_enabled:
            sums["aux_loss"] = outputs.aux_loss
        return joint_loss(loss_sums, counts, self.loss_terms(), self.kinds), loss_sums, sums

    # Evaluation

    def evaluation_loop(
        self, dataloader: Any, description: str, prediction_loss_only: bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        is_ours = isinstance(self.data_collator, BranchCollator)
        as_is = prediction_loss_only or not is_ours
        # Who is handed logits (`compute_metrics`, `predict`) counts on a row for each example.
        with contextlib.ExitStack() as stack:
            if is_ours:
                stack.enter_context(attention_by_blocks(self.args.device))
            if not as_is:
                stack.enter_context(self.data_collator.base.padded())
            return super().evaluation_loop(dataloader, description, prediction_loss_only, *args, **kwargs)

    # Logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            rows, row_tokens = self._row_sums.pop(self.accelerator)
            metrics, tokens = self._joint_sums.pop(self.accelerator)
            metrics = rows | metrics
            if metrics:
                self._total_train_tokens += (row_tokens + tokens) // self._tp_size
                metrics["num_tokens"] = self._total_train_tokens
                beside = len(self.models_in_step()) - 1
                if beside and tokens:
                    metrics["teacher/num_tokens"] = beside * tokens
                self._metrics["train"].update({name: [value] for name, value in metrics.items()})
        super().log(logs, start_time)

    def log_now(self, logs: dict[str, float]) -> None:
        """Logs these values alone, between two steps."""
        # Past SFTTrainer's `log`, which would attach, and forget, the averages of an interval that is still running.
        Trainer.log(self, logs)
