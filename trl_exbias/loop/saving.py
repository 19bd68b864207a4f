"""A trainer whose checkpoints are complete or not there, and whose models are saved with their card and without pickles."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import ProcessorMixin

from ..core.branches import PROMPT, TEACHER
from ..core.fingerprint import rows_fingerprint
from ..core.upstream import CHECKPOINT_PREFIX, TRAINING_ARGS_FILE
from ..hub.model_card import create_model_card, save_model_card
from ..run.checkpoints import completeness_problem, run_identity, save_complete
from ..run.preemption import Preemption
from ..run.processes import Processes
from .finite import check_weights
from .planned import PlannedSFTTrainer


class SavingSFTTrainer(PlannedSFTTrainer):
    """A [`PlannedSFTTrainer`] that can also save between two steps, and be told to go there."""

    processes: Processes
    preemption: Preemption
    #: Fingerprint of the tokens and labels that are trained on, whatever a method also keeps of a row: what runs are compared by.
    #: `None` for a stream, or rows that are not tokenized ahead.
    data_fingerprint: str | None = None
    #: The same with a method's own columns: what a resumed run's data must equal.
    rows_identity: str | None = None
    #: The processor of a multimodal checkpoint: saved with the model. Text is read with its tokenizer.
    _processor: ProcessorMixin | None = None
    _iteration = 0
    _trial: Any = None
    control: Any

    def identity(self) -> dict[str, Any]:
        """What the steps of this run follow from; a checkpoint of another run is not resumed from."""
        return run_identity(self.args, self._name, self.rows_identity)

    def _identify_data(self) -> None:
        columns, read = getattr(self.train_dataset, "column_names", None) or [], ("input_ids", "labels")
        if isinstance(self.train_dataset, Dataset) and {*read} <= set(columns):
            own = [name for name in (PROMPT, TEACHER) if name in columns]
            self.data_fingerprint = rows_fingerprint(self.train_dataset, read)
            self.rows_identity = rows_fingerprint(self.train_dataset, (*read, *own)) if own else self.data_fingerprint

    def _loads_optimizer(self) -> bool:
        """Whether transformers can put an optimizer's state back into this run's processes."""
        # transformers reads it with `map_location=cpu:0`, which torch does not know.
        is_sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        return self.args.world_size == 1 or self.accelerator.device.type != "cpu" or is_sharded

    def save_before_rollouts(self) -> None:
        """Saves the policy that is about to roll out, where the run saves at all."""
        # A rollout cannot be made again by a policy that has moved on: a run that saves at all saves here too, so that
        # one killed during the phase comes back to it with these very weights.
        if self.args.save_strategy != "no" and not self.args.save_only_model and self.state.global_step > 0:
            self._save_unless_saved()

    def leave_between_steps(self, kept: str) -> None:
        """Ends a run that was told to go while it rolls out or labels: what is done is on disk, and now its policy is."""
        if self.state.global_step > 0:
            self._save_unless_saved()
        self.preemption.leave(kept)

    def _save_unless_saved(self) -> None:
        """Saves a checkpoint between two steps, where this step has none."""
        # All or none: a process that looks a moment later must not come to another conclusion.
        if self.processes.any(completeness_problem(self._checkpoint_folder(self._trial)) is not None):
            self._save_checkpoint(self.model_wrapped, self._trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _checkpoint_folder(self, trial: Any) -> Path:
        return Path(self._get_output_dir(trial), f"{CHECKPOINT_PREFIX}-{self.state.global_step}")

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        check_weights(self.model, self.state.global_step)
        save_complete(
            self._checkpoint_folder(trial),
            partial(super()._save_checkpoint, model, trial),
            self.args,
            self.identity(),
            self._iteration,
            self.processes,
            self.state.best_model_checkpoint,
        )

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

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """Writes `README.md` of `output_dir`: method, paper, recipe, exposure bias, versions; see [`~trl.SFTTrainer`]."""
        super().create_model_card(model_name, dataset_name, tags)
        if self.is_world_process_zero():
            create_model_card(self, model_name, dataset_name, tags)
