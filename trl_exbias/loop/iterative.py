"""The loop that every method shares: SFT, then roll out and train on gold and rollouts together, in one `train()`."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
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
from ..chat.stop_tokens import stop_token_ids, turn_end, unfinished_test
from ..core.branches import OWN_COLUMNS, PROMPT, ROW, Branch
from ..core.data import Example
from ..core.errors import UsageError
from ..core.fingerprint import rows_fingerprint
from ..core.generation_config import make_saveable
from ..core.joint_dataset import JointDataset
from ..core.model_check import complete_fused_head
from ..core.modeling import base_causal_lm
from ..core.upstream import (
    CHECKPOINT_PREFIX,
    TRAINING_ARGS_FILE,
    commit_hash,
    forget_dataloaders,
    has_length,
    is_length_grouped,
    note_commit,
)
from ..hub.model_card import create_model_card, save_model_card
from ..rollouts import RolloutEngine, SamplingOptions, SplitEngine, TransformersEngine
from ..rollouts.local.lockstep import lockstep
from ..rollouts.vllm.engine import check_vllm
from ..rollouts.vllm.phase import vllm_engine
from ..run.checkpoints import checkpoint_to_resume, completeness_problem, save_complete
from ..run.preemption import Preemption
from ..run.processes import Processes
from ..run.run_directory import RunRecorder, check_output_dir, clear_output_dir, run_moment
from ..settings.phase_plan import PhasePlan
from .config import IterativeSFTConfig
from .epoch_axis import EpochAxis
from .finite import check_weights
from .grouped import GroupedByEpoch
from .iteration_best import IterationBest
from .joint import JointSFTTrainer
from .multimodal import leave_unused_parameters, load_processing_class, text_tokenizer
from .plan import JOINT, PlannedEpoch, RunPlan
from .planned import PlannedSFTTrainer
from .policy_check import check_policy
from .preparation import known_num_embeddings
from .rollout_phase import RolloutPhase, RolloutStats
from .signature import check_loss_override, named
from .unsupported import reject_unsupported


logger = logging.getLogger(__name__)


class IterativeSFTTrainer(PlannedSFTTrainer):
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
    #: How `exbias check` and `exbias compare` plan the method's phases.
    phase_plan = PhasePlan()
    #: Forms of data (see `data_checks.dataset_form`) in which the method makes sense.
    dataset_forms: tuple[str, ...] = ("prompt-completion", "messages", "text", "tokenized")
    #: Whether plain text is read as whole documents, and a text file as one.
    reads_documents = False
    #: How many calls of the engine `build_branches` makes for a row: what the progress bar counts by.
    engine_calls_per_row = 1

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
        self._is_extended = self._policy_checked = False
        #: Of a multimodal checkpoint: saved with the model. Text is read with its tokenizer.
        self._processor: ProcessorMixin | None = None
        self._iteration_best: IterationBest | None = None
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
        if args.rollout_engine == "vllm" and args.vllm_server_base_url is None:
            check_vllm()
        for name, value in (("data_collator", data_collator), ("compute_loss_func", kwargs.get("compute_loss_func"))):
            if value is not None:
                raise UsageError(
                    f"`{name}` is not supported together with branches, which have their own layout and loss. To change the "
                    f"loss, subclass {type(self).__name__} and override `score_branches`."
                )
        if train_dataset is None:
            raise UsageError("`train_dataset` is required.")
        train_dataset, eval_dataset = readable_parts(train_dataset, eval_dataset)
        num_embeddings = known_num_embeddings(model, args)
        form = check_train_dataset(
            train_dataset,
            args.dataset_text_field,
            kwargs.get("formatting_func") is not None,
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
        processing_class = text_tokenizer(processing_class)
        if processing_class is not None:
            check_tokenizer(processing_class, args, train_dataset, form, eval_dataset, num_embeddings)
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
        kwargs = args.chat_template_kwargs or {}
        self.stop_token_ids = stop_token_ids(
            self._tokenizer, self.model.generation_config, self.inference_template, **kwargs
        )
        self.is_unfinished = unfinished_test(
            self._tokenizer, turn_end(self._tokenizer, self.inference_template, **kwargs)
        )
        reject_unsupported(self)
        self._check_prepared(form == "tokenized")
        self._complete_model(model)
        check_policy(self)
        self._set_up_branches()
        self.sequence_lengths, self.response_lengths = response_lengths(self.train_dataset, args.max_length)
        self.train_dataset = self.train_dataset.add_column(ROW, np.arange(len(self.train_dataset)))
        check_responses(self.response_lengths, args.max_length, self.rolls_out)
        report_cut_responses(self.response_lengths, args.max_length)
        self._joint_data: torch.utils.data.Dataset = self.train_dataset
        self._set_up_patience()

    def _complete_model(self, given: Any) -> None:
        """What a loaded model lacks for a run: a configuration that can be saved, TRL's head for every cap, and its commit."""
        make_saveable(self.model)
        complete_fused_head(self.model)
        config = base_causal_lm(self.model).config
        if given == config.name_or_path:  # not an adapter's folder, whose revision is another repository's
            note_commit(config, (self.args.model_init_kwargs or {}).get("revision"))

    def _set_up_patience(self) -> None:
        if self.args.iteration_patience is not None:
            self._iteration_best = IterationBest(self)
            self.add_callback(self._iteration_best)

    # What a method is

    def build_branches(
        self, examples: list[Example], engine: RolloutEngine, options: SamplingOptions
    ) -> list[list[Branch]]:
        """
        Rolls out some examples with the current policy and labels what came out. **Implement this in a method.**

        Args:
            examples (`list[Example]`): Rows of the training data; [`Example`] has their token ids and their columns.
            engine ([`RolloutEngine`]): Draws from and labels with the current policy: `sample`, `mix`, `label`.
            options ([`SamplingOptions`]): The configured sampling, with this iteration's seed.

        Returns:
            `list[list[Branch]]`: For each example, its branches besides gold; none is fine.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what to roll out: implement `build_branches`.")

    @property
    def rolls_out(self) -> bool:
        """Whether there is anything to roll out. Where not, joint training is SFT."""
        return self.args.num_iterations > 0

    def iterations_in_use(self, iteration: int) -> list[int]:
        """Iterations whose rollouts the joint training of `iteration` uses: by default its own alone."""
        return [iteration]

    def sampling_options(self, seed: int) -> SamplingOptions:
        """The configured sampling, with the seed of an iteration."""
        return SamplingOptions(
            temperature=self.args.temperature,
            top_p=self.args.top_p,
            top_k=self.args.top_k,
            max_new_tokens=getattr(self.args, "max_new_tokens", 256),
            stop_token_ids=self.stop_token_ids,
            seed=seed,
        )

    @contextlib.contextmanager
    def make_engine(self, on_progress: Callable[[int, int], None]) -> Iterator[RolloutEngine]:
        """The configured rollout engine, for the length of a rollout phase."""
        own = TransformersEngine(
            self.model,
            pad_token_id=self._tokenizer.pad_token_id,
            max_batch_tokens=self.args.rollout_batch_tokens,
            autocast=self.accelerator.autocast,
            on_progress=on_progress,
        )
        if self.args.rollout_engine == "transformers":
            with lockstep(self.model, self.accelerator, self.processes.sum):
                yield own
            return
        with vllm_engine(self, on_progress) as engine, lockstep(self.model, self.accelerator, self.processes.sum):
            yield SplitEngine(draws=engine, labels=own)

    # Data

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if self.args.is_plain_sft:
            return
        for column in (*OWN_COLUMNS, ROW, "branches", "soft_labels"):
            if column not in self._signature_columns:
                self._signature_columns.append(column)

    # The loop

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """
        Runs the whole plan; see [`~transformers.Trainer.train`].

        `resume_from_checkpoint=True` goes on from the newest checkpoint that is whole, or begins where there is none.

        Raises:
            ValueError: if `output_dir` holds another run and neither resuming nor overwriting was asked for, or the
                checkpoint to resume from is not whole or another run's.
            RunStoppedError: the run cannot go on; what it has computed is kept, and the message says how to go on.
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
        self.data_fingerprint = self._identity_of_data()
        resume_from_checkpoint = checkpoint_to_resume(self, resume_from_checkpoint)
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
        self.preemption = Preemption(self)
        self._iteration = -1
        axis = EpochAxis(self)
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

    def _identity_of_data(self) -> str | None:
        """What a resumed run's data must equal; `None` for a stream, or rows that are not tokenized ahead."""
        columns = getattr(self.train_dataset, "column_names", None) or []
        if isinstance(self.train_dataset, Dataset) and {"input_ids", "labels"} <= set(columns):
            own = {PROMPT} & set(columns)
            return rows_fingerprint(self.train_dataset, ("input_ids", "labels", *own))
        return None

    def _run_epoch(self, *, model, epoch, train_dataloader, trial, **kwargs):
        if self.plan is None:  # a stream: its epochs are TRL's
            super()._run_epoch(model=model, epoch=epoch, train_dataloader=train_dataloader, trial=trial, **kwargs)
            return
        if epoch >= len(self.plan.epochs):  # left out when an iteration ended early
            self.control.should_training_stop = True
            return
        self._epoch, entry = epoch, self.plan.epochs[epoch]
        if entry.iteration != self._iteration:
            self._begin_phase(model, entry, trial)
        if entry.phase == JOINT and self.rolls_out:
            train_dataloader = self._joint_dataloader()
            self.callback_handler.train_dataloader = train_dataloader
        kwargs |= {"steps_in_epoch": entry.num_batches, "num_update_steps_per_epoch": entry.num_updates}
        super()._run_epoch(model=model, epoch=epoch, train_dataloader=train_dataloader, trial=trial, **kwargs)
        following = self.plan.epochs[epoch + 1 : epoch + 2]
        is_last = not following or self.control.should_training_stop
        if is_last or following[0].iteration != entry.iteration:
            self._end_phase(entry, is_last)

    def _begin_phase(self, model, entry: PlannedEpoch, trial) -> None:
        check_policy(self)
        first_step = self.plan.first_step(entry.iteration)
        if self._iteration_best is not None and self._iteration == -1 and self.state.global_step == first_step > 0:
            # Resumed from where the iteration before this one ended: with its last weights, not its best.
            self._iteration_best.restore(self.plan.iteration_at(first_step), first_step)
        self._iteration = entry.iteration
        if entry.phase == JOINT and self.rolls_out:
            self._use_rollouts(model, entry, trial)
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

    def _use_rollouts(self, model, entry: PlannedEpoch, trial) -> None:
        """Rolls out with the policy at hand, or reads what it rolled out before the run was interrupted."""
        first_step, parts = self.plan.first_step(entry.iteration), []
        for iteration in self.iterations_in_use(entry.iteration):
            phase = RolloutPhase(self, iteration)
            if iteration == entry.iteration and self.state.global_step == first_step:
                self._save_before_rollouts(model, trial)
                parts.append(phase.run(policy_step=first_step))
            else:
                parts.append(phase.load(policy_step=self.plan.first_step(iteration)))
        if not self._layout_decided:
            self._decide_layout()
        # Without a gold term, rows that were not rolled out have no loss.
        rows = RolloutPhase(self, entry.iteration).rows() if self.args.sft_weight == 0 else None
        self._joint_data = self.joint_dataset(parts, rows)

    def joint_dataset(self, rollouts: list[Dataset], rows: list[int] | None) -> JointDataset:
        """Gold rows (all, or these) with the branches of some iterations' rollouts: what an iteration trains on."""
        return JointDataset(self.train_dataset, rollouts, rows)

    def _save_before_rollouts(self, model, trial) -> None:
        # A rollout cannot be made again by a policy that has moved on: a run that saves at all saves here too, so that
        # one killed during the phase comes back to it with these very weights.
        step = self.state.global_step
        if self.args.save_strategy != "no" and not self.args.save_only_model and step > 0:
            self._save_unless_saved(model, trial)

    def leave_between_steps(self, kept: str) -> None:
        """Ends a run that was told to go while it rolls out or labels: what is done is on disk, and now its policy is."""
        if self.state.global_step > 0:
            self._save_unless_saved(self.model_wrapped, None)
        self.preemption.leave(kept)

    def _save_unless_saved(self, model, trial) -> None:
        """Saves a checkpoint between two steps, where this step has none."""
        # All or none: a process that looks a moment later must not come to another conclusion.
        if self.processes.any(completeness_problem(self._checkpoint_folder(trial)) is not None):
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _checkpoint_folder(self, trial) -> Path:
        return Path(self._get_output_dir(trial), f"{CHECKPOINT_PREFIX}-{self.state.global_step}")

    def _save_checkpoint(self, model, trial):
        check_weights(self.model, self.state.global_step)
        save_complete(self, self._checkpoint_folder(trial), partial(super()._save_checkpoint, model, trial))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As [`~transformers.Trainer.save_model`], without the pickled arguments, which may hold a token: see `run.json`."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            Path(output_dir or self.args.output_dir, TRAINING_ARGS_FILE).unlink(missing_ok=True)
        if not _internal_call:
            save_model_card(self, output_dir or self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self._processor is not None:
            self._processor.save_pretrained(output_dir or self.args.output_dir)

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """Writes `README.md` of `output_dir`: method, paper, recipe, exposure bias, versions; see [`~trl.SFTTrainer`]."""
        super().create_model_card(model_name, dataset_name, tags)
        if self.is_world_process_zero():
            create_model_card(self, model_name, dataset_name, tags)

    def _get_train_sampler(self, train_dataset=None):
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
