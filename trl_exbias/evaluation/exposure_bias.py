"""What free running costs a model, step by step; and, with a teacher, its exposure bias proper."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import UsageError
from .bootstrap import bootstrap_interval


if TYPE_CHECKING:
    from torch import nn

    from ..core.token_ids import TokenIds
    from .free_running import FreeRuns


@dataclass(frozen=True)
class Estimate:
    """A mean with its bootstrap interval over start positions."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ExposureBias:
    """
    Per-step lists are over the horizon, in nats per token; element 0 is step 1.

    Args:
        teacher_forced (`list[float]`): Cross-entropy of the true token after the true prefix.
        free_running (`list[float]`): Cross-entropy of the true token after the model's own prefix (Pozzi 2025, Eq. 12).
        gap (`list[float]`): Their difference; 0 at step 1, where both prefixes are the true context.
        excess_error (`list[float]`, *optional*):
            With a teacher p*: KL(p* ‖ p_θ) on prefixes that the model wrote minus the same on true ones. 0 where the model
            imitates as well on its own states as on the data's: exposure bias proper. Sampling noise, or states that
            happen to be easy, can make it slightly negative.
        accumulated_excess_error (`list[float]`, *optional*):
            Percent: `100 · (Σ_{t≤l} KL_own − Σ_{t≤l} KL_true) / Σ_{t≤l} KL_true` (ExAccErr of Arora et al., 2022).
        intervals (`dict[str, list[tuple[float, float]]]`): 95 % bootstrap intervals over starts, by the name of a list.
        totals (`dict[str, Estimate]`):
            Token means over all steps; `accumulated_excess_error` is that of the last step.
        num_starts, num_samples, num_tokens (`int`): Starts, free runs from each, true tokens scored.
        kl_own, kl_gold (`list[float]`, *optional*):
            With a teacher p*: KL(p* ‖ p_θ) on prefixes that the model wrote, and on true ones.
    """

    teacher_forced: list[float]
    free_running: list[float]
    gap: list[float]
    excess_error: list[float] | None
    accumulated_excess_error: list[float] | None
    intervals: dict[str, list[tuple[float, float]]]
    totals: dict[str, Estimate]
    num_starts: int
    num_samples: int
    num_tokens: int
    settings: dict[str, Any] = field(default_factory=dict)
    kl_own: list[float] | None = None
    kl_gold: list[float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)


def exposure_bias(
    model: "nn.Module",
    token_ids: "Sequence[TokenIds]",
    context_length: int,
    horizon: int,
    num_samples: int = 4,
    seed: int = 0,
    stride: int = 1,
    teacher: "nn.Module | None" = None,
    max_batch_tokens: int = 16384,
    on_progress: Callable[[int, int], object] = lambda starts, tokens: None,
) -> ExposureBias:
    """
    Measures a model on documents: from every start, `context_length` true tokens, then `horizon` steps of free running.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Left as it was found.
        token_ids (`Sequence[Sequence[int]]`): Token ids of each document; starts never cross documents.
        context_length, horizon (`int`): H and T, in tokens.
        num_samples (`int`, *optional*, defaults to `4`): Free runs from each start.
        seed (`int`, *optional*, defaults to `0`): Seed of the samples.
        stride (`int`, *optional*, defaults to `1`): Tokens from one start to the next.
        teacher ([`~transformers.PreTrainedModel`], *optional*): Stands for the true distribution in the excess error.
        max_batch_tokens (`int`, *optional*, defaults to `16384`): Tokens of one batch; halved when memory runs out.
        on_progress (`Callable[[int, int], None]`, *optional*): Called with starts done and tokens scored since last time.

    Raises:
        ValueError: if no document is `context_length + horizon` tokens long, or a number is below 1.
    """
    from ..methods.dad_dagger.trajectories import starts

    length = context_length + horizon
    for name, value in (("context_length", context_length), ("horizon", horizon), ("stride", stride)):
        if value < 1:
            raise UsageError(f"`{name}` must be at least 1, got {value}.")
    cuts = [(document, start) for document in token_ids for start in starts(len(document), length, stride)]
    if not cuts:
        raise UsageError(
            f"No document has the {length} tokens of a context ({context_length}) and a horizon ({horizon}); the longest "
            f"has {max(map(len, token_ids), default=0)}."
        )
    contexts = [document[start : start + context_length] for document, start in cuts]
    horizons = [document[start + context_length : start + length] for document, start in cuts]
    return exposure_bias_from(model, contexts, horizons, num_samples, seed, teacher, max_batch_tokens, on_progress)


def exposure_bias_from(
    model: "nn.Module",
    contexts: "Sequence[TokenIds]",
    horizons: "Sequence[TokenIds]",
    num_samples: int = 4,
    seed: int = 0,
    teacher: "nn.Module | None" = None,
    max_batch_tokens: int = 16384,
    on_progress: Callable[[int, int], object] = lambda starts, tokens: None,
) -> ExposureBias:
    """
    [`exposure_bias`] from given contexts and horizons (prompts and responses, say); horizons may differ in length.

    Raises:
        ValueError: if model and teacher do not share a vocabulary, or `num_samples` is below 1.
    """
    from ..core.modeling import LMHead
    from .free_running import free_runs

    if num_samples < 1:
        raise UsageError(f"`num_samples` must be at least 1, got {num_samples}.")
    shared = None
    if teacher is not None:
        shared = min(LMHead(model).vocab_size, LMHead(teacher).vocab_size)
    runs = free_runs(model, contexts, horizons, num_samples, seed, teacher, shared, max_batch_tokens, on_progress)
    return _summarise(runs, num_samples)


def _summarise(runs: "FreeRuns", num_samples: int) -> ExposureBias:
    columns = {
        "teacher_forced": runs.teacher_forced,
        "free_running": runs.free_running,
        "gap": runs.free_running - runs.teacher_forced,
    }
    if runs.kl_gold is not None and runs.kl_own is not None:
        columns |= {"kl_own": runs.kl_own, "kl_gold": runs.kl_gold, "excess_error": runs.kl_own - runs.kl_gold}
    present = ~np.isnan(runs.teacher_forced)
    means = {name: np.nanmean(values, axis=0) for name, values in columns.items()}
    intervals = {name: bootstrap_interval(values, present.astype(float)).T for name, values in columns.items()}
    totals = {}
    counts = present.sum(axis=1).astype(float)
    for name, values in columns.items():
        per_start = np.nansum(values, axis=1) / counts
        low, high = bootstrap_interval(per_start, counts)
        totals[name] = Estimate(float(np.nansum(values) / counts.sum()), float(low), float(high))
    accumulated = None
    if runs.kl_gold is not None:
        accumulated, accumulated_interval = _accumulated(runs, present)
        intervals["accumulated_excess_error"] = accumulated_interval
        low, high = accumulated_interval[-1]
        totals["accumulated_excess_error"] = Estimate(float(accumulated[-1]), float(low), float(high))
    return ExposureBias(
        **{name: means[name].tolist() for name in ("teacher_forced", "free_running", "gap")},
        kl_own=means["kl_own"].tolist() if "kl_own" in means else None,
        kl_gold=means["kl_gold"].tolist() if "kl_gold" in means else None,
        excess_error=means["excess_error"].tolist() if "excess_error" in means else None,
        accumulated_excess_error=None if accumulated is None else accumulated.tolist(),
        intervals={name: [tuple(ends) for ends in values.tolist()] for name, values in intervals.items()},
        totals=totals,
        num_starts=len(present),
        num_samples=num_samples,
        num_tokens=int(present.sum()),
    )


def _accumulated(runs: "FreeRuns", present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ExAccErr for every length, and its bootstrap interval: a ratio of sums, so numerators and denominators together."""

    def ratio(weights: np.ndarray) -> np.ndarray:
        totals = weights @ present
        own, gold = (
            np.cumsum(weights @ np.where(present, kl, 0.0) / totals, axis=-1)
            for kl in (runs.kl_own, runs.kl_gold)
            if kl is not None
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(gold > 0, 100 * (own - gold) / gold, 0.0)

    units = len(present)
    draws = np.random.default_rng(0).multinomial(units, np.full(units, 1 / units), size=2000)
    # A resample in which a step has no start at all says nothing of it.
    draws = draws[(draws @ present > 0).all(axis=1)]
    return ratio(np.ones(units)), np.quantile(ratio(draws), [0.025, 0.975], axis=0).T
