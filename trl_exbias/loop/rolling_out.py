"""A trainer that rolls out: what a method says of itself, the engine, and the data of an iteration."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..chat.stop_tokens import stop_token_ids, turn_end, unfinished_test
from ..core.branches import Branch
from ..core.data import Example
from ..core.fingerprint import weights_fingerprint
from ..core.joint_dataset import JointDataset
from ..core.token_ids import TokenIds
from ..rollouts import RolloutEngine, SamplingOptions, SplitEngine, StopStrings, TransformersEngine
from ..rollouts.local.lockstep import lockstep
from ..rollouts.vllm.phase import (
    PolicyToServe,
    engine_processes,
    max_model_len,
    serving_dtype,
    vllm_engine,
    weight_probe,
)
from ..run.run_directory import ROLLOUTS
from .policy_check import check_policy
from .rollout_maker import RolloutMaker
from .rollout_phase import RolloutPhase, RolloutReporter, RolloutSource, rollout_seed
from .rollout_progress import RolloutProgress
from .rollout_rows import RolloutRows
from .rollout_stats import RolloutStats
from .sample_table import print_rollouts
from .saving import SavingSFTTrainer
from .trackers import log_table, rollout_rows


class RollingOutSFTTrainer(SavingSFTTrainer):
    """A [`SavingSFTTrainer`] with a rollout phase before each iteration; what a method overrides is here."""

    #: How many calls of the engine `build_branches` makes for a row: what the progress bar counts by.
    engine_calls_per_row = 1
    rollout_stats: RolloutStats
    _policy_checked = False
    stop_token_ids: tuple[int, ...]
    stop_strings: StopStrings | None
    is_unfinished: Callable[[TokenIds], bool]
    sequence_lengths: np.ndarray
    response_lengths: np.ndarray

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
            min_p=self.args.min_p,
            repetition_penalty=self.args.repetition_penalty,
            max_new_tokens=getattr(self.args, "max_new_tokens", 256),
            stop_token_ids=self.stop_token_ids,
            stop_strings=self.stop_strings,
            seed=seed,
        )

    def iteration_data(self, iteration: int) -> torch.utils.data.Dataset:
        """
        What an iteration trains on: gold rows with the rollouts of the iterations in use, its own made now by the current
        policy, or read if the run was interrupted after they were made.
        """
        assert self.plan is not None, "rows are rolled out in training"
        first_step, parts = self.plan.first_step(iteration), []
        source, reporter = self._rollout_source(), self._rollout_reporter()
        for used in self.iterations_in_use(iteration):
            phase = RolloutPhase(source, reporter, used)
            if used == iteration and self.state.global_step == first_step:
                self.save_before_rollouts()
                parts.append(phase.run(first_step, weights_fingerprint(self.model)))
            else:
                parts.append(phase.load(self.plan.first_step(used)))
        # Without a gold term, rows that were not rolled out have no loss.
        return self.joint_dataset(parts, self.rows_to_roll_out(iteration) if self.args.sft_weight == 0 else None)

    def joint_dataset(self, rollouts: list[Dataset], rows: list[int] | None) -> JointDataset:
        """Gold rows (all, or these) with the branches of some iterations' rollouts: what an iteration trains on."""
        return JointDataset(self.train_dataset, rollouts, rows)

    def rows_to_roll_out(self, iteration: int) -> list[int]:
        """The rows that are rolled out in an iteration: those with a response, or a random `num_rollouts` of them."""
        return self._rollout_rows().chosen(rollout_seed(self.args.seed, iteration))

    def _set_up_sampling(self, template_kwargs: dict[str, Any]) -> None:
        template = self.inference_template
        self.stop_token_ids = stop_token_ids(self._tokenizer, self.model.generation_config, template, **template_kwargs)
        strings = self.args.stop_strings
        self.stop_strings = None if strings is None else StopStrings(self._tokenizer, strings)
        self.is_unfinished = unfinished_test(self._tokenizer, turn_end(self._tokenizer, template, **template_kwargs))

    def _check_policy(self) -> None:
        """Called when the trainer is made and when training begins: a model that is sharded can be read only then."""
        is_sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if self._policy_checked or not self.rolls_out or (is_sharded and not self.is_in_train):
            return
        self._policy_checked = True
        with self.accelerator.autocast():
            check_policy(self.model, decodes=self.args.rollout_engine == "transformers")

    # The phase

    def _rollout_rows(self) -> RolloutRows:
        workers = self.processes.count // engine_processes(self.args)
        return RolloutRows(self.sequence_lengths, self.response_lengths, self.args.num_rollouts, workers)

    def _rollout_source(self) -> RolloutSource:
        share, index = engine_processes(self.args), self.processes.index
        maker = RolloutMaker(
            self.train_dataset,
            self.args.max_length,
            self.build_branches,
            self.make_engine,
            self.sampling_options,
            self.rollout_stats,
            self.is_unfinished,
        )
        return RolloutSource(
            folder=Path(self.args.output_dir) / ROLLOUTS,
            identity={
                "method": self._name,
                "data": self.rows_identity,
                "seed": self.args.seed,
                **self.args.rollout_settings(),
            },
            rows=self._rollout_rows(),
            maker=maker,
            worker=None if index % share else index // share,
            processes=self.processes,
            preemption=self.preemption,
        )

    def _rollout_reporter(self) -> RolloutReporter:
        return RolloutReporter(
            self.log_now,
            self._rollout_bar,
            self._show_rollouts,
            self.args.max_degenerate_rate,
            self.leave_between_steps,
        )

    def _rollout_bar(self, iteration: int, rows: int) -> RolloutProgress:
        title = f"Rolling out (iteration {iteration}/{self.args.num_iterations})"
        is_shown = not self.args.disable_tqdm and self.is_local_process_zero()
        return RolloutProgress(title, rows, self.engine_calls_per_row, is_shown)

    def _show_rollouts(self, rollouts: Dataset, iteration: int) -> None:
        if not self.is_world_process_zero():
            return
        if self.args.log_completions:
            rows = rollout_rows(rollouts, self.train_dataset, self.processing_class, self.state.global_step, iteration)
            log_table(self.args.report_to, self.callback_handler.callbacks, rows)
        number = self.args.num_rollouts_to_print
        if number:
            title = f"{self._name}, iteration {iteration}: sample rollouts"
            print_rollouts(rollouts, self.train_dataset, self.processing_class, number, title)

    # The engine

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
        together = partial(lockstep, self.model, self.accelerator, self.processes.sum)
        if self.args.rollout_engine == "transformers":
            with together():
                yield own
            return
        with vllm_engine(self._policy_to_serve(), self.args, self.processes, on_progress) as engine, together():
            if engine is not None and self.is_world_process_zero():
                self.log_now({"seconds/vllm_start": engine.start_seconds})
            # Where there is none, no rows are drawn: another process's engine is on this one's device.
            yield SplitEngine(draws=engine, labels=own)  # type: ignore[arg-type]

    def _policy_to_serve(self) -> PolicyToServe:
        dtype = serving_dtype(self.model, self.args)
        row = self.train_dataset[int(self.sequence_lengths.argmax())]["input_ids"]
        with self.accelerator.autocast():
            probe = weight_probe(self.model, row, self._tokenizer.pad_token_id, dtype)
        longest = int(self.sequence_lengths.max()) + self.sampling_options(0).max_new_tokens
        length = max_model_len(self.model, longest)
        return PolicyToServe(self.model, self.model_wrapped, self.accelerator, dtype, probe, length)
