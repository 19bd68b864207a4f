"""The loop that every method shares: SFT, then roll out and train on gold and rollouts together, in one `train()`."""

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainingArguments

from ..chat.data_checks import check_responses, check_tokenizer, check_train_dataset, readable_parts
from ..chat.prompts import report_cut_responses, response_lengths
from ..core.branches import OWN_COLUMNS, ROW
from ..core.errors import UsageError
from ..core.modeling import base_causal_lm
from ..core.upstream import commit_hash, forget_dataloaders, has_length, is_length_grouped
from ..rollouts.vllm.engine import check_vllm
from ..rollouts.vllm.policy import check_servable
from ..run.checkpoints import checkpoint_to_resume
from ..run.preemption import Preemption
from ..run.processes import Processes
from ..run.run_directory import RunRecorder, check_output_dir, clear_output_dir, run_moment
from ..settings.phase_plan import PhasePlan
from .config import IterativeSFTConfig
from .epoch_axis import EpochAxis
from .grouped import GroupedByEpoch
from .iteration_best import IterationBest, RunningPlan, check_patience
from .joint import JointSFTTrainer
from .multimodal import leave_unused_parameters, load_processing_class, text_tokenizer
from .plan import JOINT, PlannedEpoch, RunPlan
from .preparation import known_num_embeddings
from .rolling_out import RollingOutSFTTrainer
from .rollout_stats import RolloutStats
from .signature import check_loss_override, named, refuse_given
from .unsupported import reject_unsupported


logger = logging.getLogger(__name__)


class IterativeSFTTrainer(RollingOutSFTTrainer):
    """
    Trains on gold data, then, iteration by iteration, on gold data and the policy's own rollouts together.

    Differs from [`~trl.SFTTrainer`] in what a run is: `sft_epochs` of SFT, then `num_iterations` times a rollout phase
    and `num_train_epochs` of joint training, in one `train()` with one step axis and one learning-rate schedule. A
    method is a subclass that implements [`~IterativeSFTTrainer.build_branches`] (what to roll out, how to label it) and
    names its branch kinds; the joint objective is by default

    `J = sft_weight · mean over gold labels + Σ_kinds rollout_weight · mean over the kind's labels`,

    each mean over the label tokens of the whole global batch.

    Requirements: a decoder-only model; a map-style dataset in one of TRL's forms; no packing. Where nothing rolls out
    (`num_iterations=0`, BASH with `beta=0`) whatever [`~trl.SFTTrainer`] takes is taken.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            As in [`~trl.SFTTrainer`].
        args ([`IterativeSFTConfig`], *optional*):
            Settings. TRL's own [`~trl.SFTConfig`] is accepted, with the loop's settings at their defaults.
        data_collator (`Callable`, *optional*):
            As in [`~trl.SFTTrainer`] where nothing rolls out, else not supported: branches have their own layout.
        train_dataset ([`~datasets.Dataset`]), eval_dataset, processing_class, *more, **kwargs:
            As in [`~trl.SFTTrainer`], by position too.

    Raises:
        TypeError, ValueError: for data or settings that cannot be trained on, before the model is loaded where possible.
    """

    _tag_names = ["trl", "trl-exbias", "iterative-sft"]
    _name = "Iterative SFT"
    config_class = IterativeSFTConfig
    train_dataset: Any
    #: How `exbias check` and `exbias compare` plan the method's phases.
    phase_plan = PhasePlan()
    #: Forms of data (see `data_checks.dataset_form`) in which the method makes sense.
    dataset_forms: tuple[str, ...] = ("prompt-completion", "messages", "text", "tokenized")
    #: Whether plain text is read as whole documents, and a text file as one.
    reads_documents = False

    def __init__(
        self,
        model: Any,
        args: IterativeSFTConfig | TrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *more: Any,
        **kwargs: Any,
    ):
        kwargs = named(type(self), more, kwargs)
        args = self.config_class.from_args(args, model, type(self))
        self.rollout_stats = RolloutStats()
        self.plan: RunPlan | None = None
        self._iteration = self._epoch = 0
        self._phase_started = 0.0
        self._last_seconds: dict[str, float] = {}
        #: When the run began: what its chat template prints, also where it is resumed on another day.
        self.rendered_on = run_moment(args.output_dir, args.overwrite_output_dir and not args.resume_from_checkpoint)
        #: The tokenizer's own template at that moment: what inference renders with.
        self.inference_template: str | None = None
        if args.is_plain_sft:
            # Nothing is refused, nor changed, that TRL's own trainer takes (and computes right).
            super().__init__(model, args, data_collator, train_dataset, eval_dataset, processing_class, **kwargs)
            self._complete_model(model)
            self._set_up_plain_sft()
            self._set_up_patience()
            return
        check_loss_override(type(self), JointSFTTrainer)
        refuse_given(type(self), data_collator=data_collator, compute_loss_func=kwargs.get("compute_loss_func"))
        if args.rollout_engine == "vllm" and args.vllm_server_base_url is None:
            check_vllm()
        if train_dataset is None:
            raise UsageError("`train_dataset` is required.")
        train_dataset, eval_dataset = readable_parts(train_dataset, eval_dataset)
        processing_class, form = self._check_data(
            args, model, train_dataset, eval_dataset, processing_class, kwargs.get("formatting_func") is not None
        )
        leave_unused_parameters(args, model)
        train_dataset, eval_dataset = self._prepare_datasets(args, train_dataset, eval_dataset)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self._set_up_sampling(args.chat_template_kwargs or {})  # type: ignore[arg-type]  # text until TRL has read it
        reject_unsupported(self.model, args, self.accelerator, getattr(self, "teacher", None) is not None)
        self._check_prepared(form == "tokenized")
        self._complete_model(model)
        if args.rollout_engine == "vllm" and self.rolls_out:
            check_servable(self.model)
        self._check_policy()
        self._set_up_branches()
        self._set_up_rows()
        self._set_up_patience()

    def _set_up_rows(self) -> None:
        limit = self.args.max_length
        self.sequence_lengths, self.response_lengths = response_lengths(self.train_dataset, limit)
        self.train_dataset = self.train_dataset.add_column(ROW, np.arange(len(self.train_dataset)))
        check_responses(self.response_lengths, limit, self.rolls_out)
        report_cut_responses(self.response_lengths, limit)
        self._joint_data: torch.utils.data.Dataset = self.train_dataset

    def _check_data(
        self,
        args: IterativeSFTConfig,
        model: Any,
        train_dataset: Dataset,
        eval_dataset: Dataset | dict[str, Dataset] | None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None,
        has_formatting_func: bool,
    ) -> tuple[PreTrainedTokenizerBase | None, str]:
        """The tokenizer and the form of the data, after all checks that need no weights."""
        num_embeddings = known_num_embeddings(model, args)
        form = check_train_dataset(
            train_dataset,
            args.dataset_text_field,
            has_formatting_func,
            eval_dataset,
            num_embeddings,
            self.reads_documents,
            self.dataset_forms,
            type(self).__name__,
        )
        if processing_class is None:
            # Loaded ahead of the weights, so that a tokenizer that cannot do the job is found before they are.
            processing_class = load_processing_class(model, args)
        self._processor = processing_class if isinstance(processing_class, ProcessorMixin) else None
        tokenizer = text_tokenizer(processing_class)
        if tokenizer is not None:
            check_tokenizer(tokenizer, args, train_dataset, form, eval_dataset, num_embeddings)
        return tokenizer, form

    def _set_up_patience(self) -> None:
        if self.args.iteration_patience is None:
            return
        check_patience(self.args, self.eval_dataset, self.is_deepspeed_enabled or self.is_fsdp_enabled)
        run = RunningPlan(
            plan=lambda: self.plan,  # type: ignore[arg-type, return-value]  # asked for in training, when it is there
            is_training=lambda: self.is_in_train,
            logged=lambda: self.state.log_history,
            save=partial(self.save_model, _internal_call=True),
            load=lambda folder: self._load_from_checkpoint(folder, self.model),
        )
        self._iteration_best = IterationBest(run, self.args)
        self.add_callback(self._iteration_best)

    # Data

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.args.is_plain_sft:
            return
        for column in (*OWN_COLUMNS, ROW, "branches", "soft_labels", "trunk_states"):
            if column not in self._signature_columns:
                self._signature_columns.append(column)

    # The loop

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """
        Runs the whole plan; see [`~transformers.Trainer.train`].

        `resume_from_checkpoint=True` continues from the newest checkpoint that is whole, or begins where there is none.

        Raises:
            ValueError: if `output_dir` holds another run and neither resuming nor overwriting was asked for, or the
                checkpoint to resume from is not whole or another run's.
            RunStoppedError: the run cannot continue; what it has computed is kept, and the message says how to continue.
            PreemptedError: after SIGTERM, with everything saved (an exit status of 85).
        """
        self.processes = Processes(self.accelerator, Path(self.args.output_dir))
        if not (self.processes.share_files or self.args.save_on_each_node or self.args.save_strategy == "no"):
            raise UsageError(
                f"The nodes do not share `output_dir={self.args.output_dir}`: set `save_on_each_node=True`, or choose a folder "
                "on a shared file system."
            )
        check_output_dir(self.args.output_dir, bool(resume_from_checkpoint), self.args.overwrite_output_dir)
        self.processes.wait()  # all have looked before one removes anything
        if self.processes.writes_files and self.args.overwrite_output_dir and not resume_from_checkpoint:
            clear_output_dir(self.args.output_dir)
        self.processes.wait()
        self._identify_data()
        resume_from_checkpoint = checkpoint_to_resume(
            resume_from_checkpoint, self.args, self.identity(), self._loads_optimizer()
        )
        config = base_causal_lm(self.model).config
        rows = len(self.train_dataset) if has_length(self.train_dataset) else None
        recorder = RunRecorder(
            {
                "method": self._name,
                "model": config.name_or_path,
                "model_revision": commit_hash(config),
                "data": self.data_fingerprint,
                "rows": rows,
                "rendered_on": self.rendered_on.isoformat(),
            }
        )
        self.preemption = Preemption(self.processes, can_resume=not self.args.save_only_model)
        self._iteration = -1
        axis = EpochAxis(lambda: self.plan)
        self.callback_handler.callbacks.insert(0, axis)  # before whoever reads `state.epoch`
        for callback in (recorder, self.preemption):
            self.add_callback(callback)
        try:
            with self.preemption:
                result = super().train(resume_from_checkpoint, *args, **kwargs)
                if self.preemption.leaving:
                    self.preemption.leave(f"step {self.state.global_step} is saved in {self.args.output_dir}")
                return result
        finally:
            for callback in (axis, recorder, self.preemption):
                self.remove_callback(callback)

    def _run_epoch(
        self, *, model: torch.nn.Module, epoch: int, train_dataloader: Any, trial: Any, **kwargs: Any
    ) -> None:
        if self.plan is None:  # a stream: its epochs are TRL's
            super()._run_epoch(model=model, epoch=epoch, train_dataloader=train_dataloader, trial=trial, **kwargs)
            return
        if epoch >= len(self.plan.epochs):  # left out when an iteration ended early
            self.control.should_training_stop = True
            return
        self._epoch, entry = epoch, self.plan.epochs[epoch]
        if entry.iteration != self._iteration:
            self._trial = trial
            self._begin_phase(entry)
        if entry.phase == JOINT and self.rolls_out:
            train_dataloader = self._joint_dataloader()
            self.callback_handler.train_dataloader = train_dataloader
        kwargs |= {"steps_in_epoch": entry.num_batches, "num_update_steps_per_epoch": entry.num_updates}
        super()._run_epoch(model=model, epoch=epoch, train_dataloader=train_dataloader, trial=trial, **kwargs)
        following = self.plan.epochs[epoch + 1 : epoch + 2]
        is_last = not following or self.control.should_training_stop
        if is_last or following[0].iteration != entry.iteration:
            self._end_phase(entry, is_last)

    def _begin_phase(self, entry: PlannedEpoch) -> None:
        self._check_policy()
        assert self.plan is not None
        first_step = self.plan.first_step(entry.iteration)
        if self._iteration_best is not None and self._iteration == -1 and self.state.global_step == first_step > 0:
            # Resumed from where the iteration before this one ended: with its last weights, not its best.
            self._iteration_best.restore(self.plan.iteration_at(first_step), first_step)
        self._iteration = entry.iteration
        if entry.phase == JOINT and self.rolls_out:
            self._joint_data = self.iteration_data(entry.iteration)
            if not self._layout_decided:
                self._decide_layout()
        if not (self.args.is_plain_sft or self._rows_decided):
            self._decide_rows()  # also where SFT is over: a resumed run evaluates as the whole one does
        self._phase_started = time.perf_counter()

    def _end_phase(self, entry: PlannedEpoch, is_last: bool) -> None:
        spent = {f"seconds/{entry.phase}": time.perf_counter() - self._phase_started}
        if self.args.device.type == "cuda":
            spent["memory/device_peak_bytes"] = torch.cuda.max_memory_allocated(self.args.device)
        if is_last:
            self._last_seconds = spent  # with the summary: the logs of SFT alone have the entries that TRL's have
        else:
            self.log_now(spent)
        if self._iteration_best is not None:
            self._iteration_best.restore(entry.iteration, self.state.global_step)
        for callback in self.callback_handler.callbacks:
            # An event of ours: `on_iteration_end(args, state, control, model=…, iteration=…)`.
            if hasattr(callback, "on_iteration_end"):
                callback.on_iteration_end(
                    self.args, self.state, self.control, model=self.model, iteration=entry.iteration
                )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_runtime" in logs:
            logs.update(self._last_seconds)
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if self.rolls_out and is_length_grouped(sampler):
            return GroupedByEpoch(sampler, self.args.seed, lambda: self._epoch)
        return sampler

    def _joint_dataloader(self) -> DataLoader:
        forget_dataloaders(self.accelerator)  # one prepared loader at a time
        return self._get_dataloader(
            dataset=self._joint_data,
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )
