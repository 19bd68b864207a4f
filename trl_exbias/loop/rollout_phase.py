"""One rollout phase: which rows, in which shards, by which process, onto disk; or finding that it was done before."""

import contextlib
import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

from ..core.data import Example
from ..core.fingerprint import weights_fingerprint
from ..rollouts.counting import DEGENERATE, LABEL_LENGTH, LENGTH, CountingEngine
from ..rollouts.noise import derive_seed
from ..rollouts.vllm.phase import engine_processes
from ..run.errors import NotWrittenError
from ..run.processes import longest_first
from ..run.rollout_store import SHARDS, RolloutStore
from ..run.run_directory import ROLLOUTS
from .degenerate import check_rollouts, warn_of_first
from .sample_table import print_rollouts


if TYPE_CHECKING:
    from .iterative import IterativeSFTTrainer

logger = logging.getLogger(__name__)

# What a killed run loses is at most the shard being written; what a shard costs is a file and a shorter batch.
_MAX_SHARD_ROWS = 512
_MIN_SHARD_ROWS = 64
_SHARDS_WANTED = 32
_SHARDS_A_WORKER = 4
# Settings of rollouts that a resumed run may have changed: for the phases that it has not trained on yet.
_MAY_CHANGE = ("max_new_tokens",)


class RolloutPhase:
    """
    Rolls out the rows of one iteration with the current policy and stores them.

    Args:
        trainer ([`IterativeSFTTrainer`]): Supplies the policy, the data and the method (`build_branches`).
        iteration (`int`): 1.. .
    """

    def __init__(self, trainer: "IterativeSFTTrainer", iteration: int):
        self.trainer = trainer
        self.iteration = iteration
        self.store = RolloutStore(Path(trainer.args.output_dir) / ROLLOUTS / f"iteration-{iteration}")
        self.seed = derive_seed(trainer.args.seed, "rollouts", iteration)

    def rows(self) -> list[int]:
        """The rows rolled out in this iteration: those with a response, or a random `num_rollouts` of them."""
        lengths = self.trainer.response_lengths
        rows = np.flatnonzero(lengths > 0)
        wanted = self.trainer.args.num_rollouts
        if wanted is not None and wanted < len(rows):
            generator = np.random.Generator(np.random.Philox(derive_seed(self.seed, "rows")))
            rows = np.sort(generator.choice(rows, wanted, replace=False))
        return rows.tolist()

    def run(self, policy_step: int) -> Dataset:
        """Rolls out what is not on disk yet, reports on the phase, and returns all its branches."""
        started, processes = time.perf_counter(), self.trainer.processes
        header = self._header(policy_step, weights_fingerprint(self.trainer.model))
        shared = processes.share_files
        writes_manifest = processes.writes_files
        with self._reporting_failed_writes():
            if writes_manifest:
                self._set_aside_what_is_not_ours(header)
            processes.wait()
            shards = self._shards()
            if writes_manifest:
                self.store.begin(header, len(shards))
            processes.wait()
            if not shared:
                processes.hand_over(self.store.folder, SHARDS)
        tokens = 0
        if processes.any(not self.store.is_complete):
            missing = self.store.missing_shards()
            processes.wait()  # before anyone adds one: the share of each follows from this list
            mine = missing if processes.count == 1 else [missing[i] for i in self._mine([shards[i] for i in missing])]
            tokens = self._roll_out([(i, shards[i]) for i in mine])
            processes.wait()
            if not shared:
                processes.hand_over(self.store.folder, SHARDS)
            if self.trainer.preemption.agreed():
                self.trainer.leave_between_steps(f"the finished rollouts of iteration {self.iteration} are kept")
            with self._reporting_failed_writes():
                if writes_manifest:
                    self.store.finish()
            processes.wait()
        rollouts = self.store.read()
        self._report(rollouts, tokens, time.perf_counter() - started)
        return rollouts

    def _mine(self, shards: list[list[int]]) -> list[int]:
        """Which of some shards are this process's: none where its device serves another one's engine."""
        processes, share = self.trainer.processes, engine_processes(self.trainer.args)
        if processes.index % share:
            return []
        costs = [float(self.trainer.sequence_lengths[shard].sum()) for shard in shards]
        return longest_first(costs, processes.count // share)[processes.index // share]

    def load(self, policy_step: int) -> Dataset:
        """
        The stored rollouts, for a run that resumes behind the phase: its policy has moved on and cannot make them again.

        Raises:
            RolloutStoreError: if they are missing, damaged, or were made with other settings.
        """
        stored = (self.store.manifest or {"header": {}})["header"]
        header = self._header(policy_step, stored.get("policy", ""))
        # A phase that is done keeps the limit that it was made with.
        self.store.check({**header, **{key: stored.get(key) for key in _MAY_CHANGE if key in header}})
        return self.store.read()

    def _header(self, policy_step: int, policy: str) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "method": trainer._name,
            "iteration": self.iteration,
            "policy_step": policy_step,
            "policy": policy,
            "data": trainer.data_fingerprint,
            "seed": trainer.args.seed,
            **trainer.args.rollout_settings(),
        }

    def _shards(self) -> list[list[int]]:
        rows = self.rows()
        # Rows of similar length together: a shard is what the engine batches.
        lengths = self.trainer.sequence_lengths
        rows.sort(key=lambda row: (-lengths[row], row))
        workers = self.trainer.processes.count // engine_processes(self.trainer.args)
        wanted = max(_SHARDS_WANTED, _SHARDS_A_WORKER * workers)
        size = min(_MAX_SHARD_ROWS, max(_MIN_SHARD_ROWS, -(-len(rows) // wanted)))
        # As many shards as workers at a time, dealt row by row: each has as much to do, however few the rows are.
        hands = max(1, -(-len(rows) // (size * workers)))
        bounds = [len(rows) * hand // hands for hand in range(hands + 1)]
        dealt = [rows[a:b][worker::workers] for a, b in itertools.pairwise(bounds) for worker in range(workers)]
        return [shard for shard in dealt if shard]

    def _set_aside_what_is_not_ours(self, header: dict[str, Any]) -> None:
        """
        Rollouts of another policy (of a run that was resumed from an earlier step, and came here with other weights), or with
        another limit (of a run that was stopped because they were cut off) are kept under another name.
        """
        if (manifest := self.store.manifest) is None:
            return
        stored = manifest["header"]
        other = [key for key in ("policy", *_MAY_CHANGE) if stored.get(key) != header.get(key)]
        if not other:
            return
        # A run that was extended comes here later, too.
        self.store.check({**header, **{key: stored.get(key) for key in (*other, "policy_step")}})
        folder, n = self.store.folder, 1
        while (aside := folder.with_name(f"{folder.name}.superseded-{n}")).exists():
            n += 1
        folder.rename(aside)
        reason = "by another policy than the one at hand" if "policy" in other else f"with another `{other[0]}`"
        logger.warning(f"{folder} was made {reason}: moved to {aside.name}, rolling out anew.")

    def _roll_out(self, shards: list[tuple[int, list[int]]]) -> int:
        """Makes and stores these shards; returns how many tokens the engine worked out."""
        trainer, data = self.trainer, self.trainer.train_dataset
        options = trainer.sampling_options(self.seed)
        progress = _Progress(self, sum(len(rows) for _, rows in shards))
        with progress, trainer.make_engine(progress.update) as engine:
            engine = CountingEngine(engine, trainer.rollout_stats.add, trainer.is_unfinished)
            for index, rows in shards:
                if trainer.preemption.asked:
                    break
                examples = [Example.from_row(row, data[row], trainer.args.max_length) for row in rows]
                trainer.rollout_stats.clear()
                branches = trainer.build_branches(examples, engine, options)
                if len(branches) != len(examples):
                    raise ValueError(
                        f"{type(trainer).__name__}.build_branches must return one list of branches for each example: got "
                        f"{len(branches)} for {len(examples)}."
                    )
                rollouts = {example.id: own for example, own in zip(examples, branches, strict=True)}
                stats = trainer.rollout_stats.as_dict()
                with self._reporting_failed_writes():
                    self.store.write_shard(index, rollouts, stats)
                progress.shard_done(len(rows))
                if index == 0:
                    warn_of_first(means(stats), stats.get(DEGENERATE, (0, 0))[1], self.store.folder)
        return progress.tokens

    @contextlib.contextmanager
    def _reporting_failed_writes(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kept = "The rollouts made before are kept, and so is the policy's checkpoint."
            raise NotWrittenError(self.store.folder, error, kept) from error

    def _report(self, rollouts: Dataset, tokens: int, seconds: float) -> None:
        trainer, manifest = self.trainer, self.store.manifest
        metrics = means(manifest["stats"])
        # What the phase produced, also where a resumed run found it on disk: what comparisons count compute by.
        metrics["rollout/num_tokens"] = int(manifest["stats"].get(LENGTH, (0, 0))[0])
        if LABEL_LENGTH in manifest["stats"]:
            metrics["teacher/num_tokens"] = int(manifest["stats"][LABEL_LENGTH][0])
        (tokens,) = trainer.processes.sum([tokens])
        if tokens:  # nothing where a resumed run found everything on disk
            metrics["rollout/tokens_per_second"] = tokens / seconds
        trainer.log_now({**metrics, "seconds/rollouts": seconds})
        num_responses = manifest["stats"].get(DEGENERATE, (0, 0))[1]
        check_rollouts(metrics, num_responses, trainer.args.max_degenerate_rate, self.store.folder)
        if trainer.args.num_rollouts_to_print and trainer.is_world_process_zero():
            print_rollouts(
                rollouts,
                trainer.train_dataset,
                trainer.processing_class,
                trainer.args.num_rollouts_to_print,
                title=f"{trainer._name}, iteration {self.iteration}: sample rollouts",
            )


class _Progress:
    """A bar over the rows of this process: done / total, tokens a second, time left."""

    def __init__(self, phase: RolloutPhase, total: int):
        args = phase.trainer.args
        self.bar = tqdm(
            total=total,
            desc=f"Rolling out (iteration {phase.iteration}/{args.num_iterations})",
            unit="row",
            leave=False,
            dynamic_ncols=True,
            disable=args.disable_tqdm or not phase.trainer.is_local_process_zero(),
        )
        self.share = 1 / phase.trainer.engine_calls_per_row
        self.rows_stored = 0
        self.tokens = 0
        self.started = time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.bar.close()

    def update(self, rows: int, tokens: int) -> None:
        self.tokens += tokens
        self.bar.set_postfix_str(f"{self.tokens / (time.perf_counter() - self.started):,.0f} tokens/s", refresh=False)
        self.bar.update(rows * self.share)

    def shard_done(self, rows: int) -> None:
        self.rows_stored += rows
        self.bar.update(self.rows_stored - self.bar.n)


def means(stats: dict[str, list[float]]) -> dict[str, float]:
    """Metrics from their numerators and denominators."""
    return {name: total / count for name, (total, count) in stats.items() if count}


class RolloutStats:
    """Numerators and denominators of a phase's metrics, summed over rows, shards and processes before they are divided."""

    def __init__(self):
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, name: str, total: float, count: float) -> None:
        """Adds to metric `name` = Σ total / Σ count."""
        self._sums[name][0] += total
        self._sums[name][1] += count

    def clear(self) -> None:
        self._sums.clear()

    def as_dict(self) -> dict[str, list[float]]:
        return {name: list(sums) for name, sums in self._sums.items()}
