"""One rollout phase: made in shards, by several processes, onto disk; or found there, where it was made before."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..rollouts.counting import DEGENERATE, LABEL_LENGTH, LENGTH
from ..rollouts.noise import derive_seed
from ..run.errors import NotWrittenError
from ..run.preemption import Preemption
from ..run.processes import Processes
from ..run.rollout_store import SHARDS, RolloutStore
from .degenerate import check_rollouts, warn_of_first
from .rollout_maker import RolloutMaker
from .rollout_progress import RolloutProgress
from .rollout_rows import RolloutRows
from .rollout_stats import means


logger = logging.getLogger(__name__)

# Settings of rollouts that a resumed run may have changed: for the phases that it has not trained on yet.
_MAY_CHANGE = ("max_new_tokens",)


@dataclass(frozen=True)
class RolloutSource:
    """
    What the rollouts of a run come from.

    Args:
        folder (`Path`): The folder of all the run's rollouts.
        identity (`dict[str, Any]`): What they follow from in addition to the policy: method, data, `seed`, settings.
        rows ([`RolloutRows`]): Which rows, in which shards.
        maker ([`RolloutMaker`]): The method.
        worker (`int`, *optional*): Which of those who roll out this process is; `None` where its device serves another's engine.
        processes ([`Processes`]), preemption ([`Preemption`]): The run's.
    """

    folder: Path
    identity: dict[str, Any]
    rows: RolloutRows
    maker: RolloutMaker
    worker: int | None
    processes: Processes
    preemption: Preemption


@dataclass(frozen=True)
class RolloutReporter:
    """
    Whom a phase tells of itself.

    Args:
        log (`Callable`): Takes metrics.
        progress (`Callable`): A bar over a number of rows of an iteration.
        show (`Callable`): Prints some rollouts of an iteration.
        max_degenerate_rate (`float`): Share of degenerate rollouts above which the run is stopped.
        leave (`Callable`): Ends a run that was told to go, saying what is kept.
    """

    log: Callable[[dict[str, float]], None]
    progress: Callable[[int, int], RolloutProgress]
    show: Callable[[Dataset, int], None]
    max_degenerate_rate: float
    leave: Callable[[str], None]


class RolloutPhase:
    """
    Rolls out the rows of one iteration with the current policy and stores them.

    Args:
        source ([`RolloutSource`]): What they come from.
        reporter ([`RolloutReporter`]): Whom the phase tells of itself.
        iteration (`int`): 1.. .
    """

    def __init__(self, source: RolloutSource, reporter: RolloutReporter, iteration: int):
        self.source, self.reporter, self.iteration = source, reporter, iteration
        self.store = RolloutStore(source.folder / f"iteration-{iteration}")
        self.seed = rollout_seed(source.identity["seed"], iteration)

    def run(self, policy_step: int, policy: str) -> Dataset:
        """
        Rolls out what is not on disk yet, reports on the phase, and returns all its branches.

        Args:
            policy_step (`int`): The step after which the current policy was saved.
            policy (`str`): Fingerprint of its weights.
        """
        started, processes = time.perf_counter(), self.source.processes
        header = self._header(policy_step, policy)
        shards = self.source.rows.shards(self.seed)
        with self._reporting_failed_writes():
            if processes.writes_files:
                self._set_aside_what_is_not_ours(header)
            processes.wait()
            if processes.writes_files:
                self.store.begin(header, len(shards))
            processes.wait()
            self._share()
        tokens = 0
        if processes.any(not self.store.is_complete):
            missing = self.store.missing_shards()
            processes.wait()  # before anyone adds one: the share of each follows from this list
            tokens = self._roll_out([(i, shards[i]) for i in self._mine(missing, shards)])
            processes.wait()
            self._share()
            if self.source.preemption.agreed():
                self.reporter.leave(f"the finished rollouts of iteration {self.iteration} are kept")
            with self._reporting_failed_writes():
                if processes.writes_files:
                    self.store.finish()
            processes.wait()
        rollouts = self.store.read()
        self._report(rollouts, tokens, time.perf_counter() - started)
        return rollouts

    def load(self, policy_step: int) -> Dataset:
        """
        The stored rollouts, for a run that resumes after the phase: its policy has moved on and cannot make them again.

        Raises:
            RolloutStoreError: if they are missing, damaged, or were made with other settings.
        """
        stored = (self.store.manifest or {"header": {}})["header"]
        header = self._header(policy_step, stored.get("policy", ""))
        # A phase that is done keeps the limit that it was made with.
        self.store.check({**header, **{key: stored.get(key) for key in _MAY_CHANGE if key in header}})
        return self.store.read()

    def _header(self, policy_step: int, policy: str) -> dict[str, Any]:
        identity = self.source.identity
        return {
            "method": identity["method"],
            "iteration": self.iteration,
            "policy_step": policy_step,
            "policy": policy,
            **{name: value for name, value in identity.items() if name != "method"},
        }

    def _mine(self, missing: list[int], shards: list[list[int]]) -> list[int]:
        """Which of the missing shards are this process's."""
        if self.source.worker is None:
            return []
        if self.source.processes.count == 1:
            return missing
        return [missing[i] for i in self.source.rows.of_worker([shards[i] for i in missing], self.source.worker)]

    def _share(self) -> None:
        """Gives nodes without a common file system each other's shards."""
        if not self.source.processes.share_files:
            self.source.processes.hand_over(self.store.folder, SHARDS)

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
        reason = "by another policy than the current one" if "policy" in other else f"with another `{other[0]}`"
        logger.warning(f"{folder} was made {reason}: moved to {aside.name}, rolling out again.")

    def _roll_out(self, shards: list[tuple[int, list[int]]]) -> int:
        """Makes and stores these shards; returns how many tokens the engine worked out."""
        maker = self.source.maker
        options = maker.sampling_options(self.seed)
        progress = self.reporter.progress(self.iteration, sum(len(rows) for _, rows in shards))
        with progress, maker.make_engine(progress.update) as engine:
            for index, rows in shards:
                if self.source.preemption.asked:
                    break
                rollouts, stats = maker.make(rows, engine, options)
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
        stats = self.store.require_manifest()["stats"]
        metrics = means(stats)
        # What the phase produced, also where a resumed run found it on disk: what comparisons count compute by.
        metrics["rollout/num_tokens"] = int(stats.get(LENGTH, (0, 0))[0])
        if LABEL_LENGTH in stats:
            metrics["teacher/num_tokens"] = int(stats[LABEL_LENGTH][0])
        (tokens,) = self.source.processes.sum([tokens])
        if tokens:  # nothing where a resumed run found everything on disk
            metrics["rollout/tokens_per_second"] = tokens / seconds
        self.reporter.log({**metrics, "seconds/rollouts": seconds})
        num_responses = stats.get(DEGENERATE, (0, 0))[1]
        check_rollouts(metrics, num_responses, self.reporter.max_degenerate_rate, self.store.folder)
        self.reporter.show(rollouts, self.iteration)


def rollout_seed(seed: int, iteration: int) -> int:
    """The seed of all draws of an iteration's rollouts, from the run's."""
    return derive_seed(seed, "rollouts", iteration)
