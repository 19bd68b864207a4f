"""
After a token that differs from gold, is gold still the right next token? What decides between hard and soft labels on a
model's own states, measured before anything is trained.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import UsageError
from .exposure_bias import Estimate


if TYPE_CHECKING:
    from torch import nn

    from ..core.token_ids import TokenIds

#: A token is probable if it has at least this share of the most probable one's probability.
PROBABLE = 0.1
#: Share of the drawn tokens: below it, there is hardly a state of the model's own to learn from.
HARDLY = 0.02
#: A reference that is read makes gold at least so much likelier: its cross-entropy falls to this share.
READ = 0.7

#: Given continuations and rows of labels along them: the NLLs of each of the labels, and of the most probable token.
Judge = Callable[
    [Sequence["TokenIds"], Sequence[Sequence["TokenIds"]]], tuple[list[list[list[float]]], list[list[float]]]
]

NOTHING, UNREADABLE, STAYS, LOST, PARTLY = "nothing to learn", "cannot tell", "stays right", "not right", "partly"


@dataclass(frozen=True)
class Diagnosis:
    """
    Shares are between 0 and 1, with 95 % bootstrap intervals over rows.

    Args:
        verdict (`str`):
            What holds for gold after a token that differs from it: `"stays right"`, `"not right"` or `"partly"`; `"nothing to learn"`
            where the model hardly deviates, `"cannot tell"` where the judge does not read the reference, or does not find
            gold probable even after gold.
        changed ([`Estimate`]): The share of the drawn tokens that differs from gold.
        after_gold, after_other ([`Estimate`]): Share of gold tokens that the judge finds probable after gold alone, and after
            a token that differs: at the same places. NaN where no token differs.
        kept ([`Estimate`]): The second divided by the first.
        accepted ([`Estimate`]): Share of the differing tokens that the judge finds probable themselves: alternatives rather
            than mistakes.
        model_nll, judge_nll (`float`): Cross-entropy of gold after gold, in nats per token.
        num_rows, num_places (`int`): Rows, and places right after a differing token.
    """

    verdict: str
    changed: Estimate
    after_gold: Estimate
    after_other: Estimate
    kept: Estimate
    accepted: Estimate
    model_nll: float
    judge_nll: float
    num_rows: int
    num_places: int
    settings: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON, which has no NaN: `None` there."""
        record = asdict(self)
        for name, value in record.items():
            if isinstance(value, dict):
                record[name] = {key: None if math.isnan(v) else v for key, v in value.items()}
        return record


def model_judge(model: "nn.Module", contexts: "Sequence[TokenIds]", max_batch_tokens: int = 16384) -> Judge:
    """A model's opinion after its contexts: a teacher's after the prompts, or the model's own after the reference."""
    from ..core.likelihood import several_nll

    return lambda continuations, labels: several_nll(model, contexts, continuations, labels, 0, max_batch_tokens)


def diagnose(
    model: "nn.Module",
    prompts: "Sequence[TokenIds]",
    responses: "Sequence[TokenIds]",
    judge: Judge,
    share: float = 0.5,
    seed: int = 0,
    shows_reference: bool = False,
    max_batch_tokens: int = 16384,
    excluded_token_ids: tuple[int, ...] = (),
    on_progress: Callable[[int, int], Any] = lambda rows, tokens: None,
) -> Diagnosis:
    """
    Draws a share of each response from the model, as BASH does, and asks the judge about gold's next tokens.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Left as it was found.
        prompts, responses (`Sequence[Sequence[int]]`): Token ids of held-out rows.
        judge ([`Judge`]): Says how probable a token is after a continuation; see [`model_judge`].
        share (`float`, *optional*, defaults to `0.5`): Share of the tokens that is drawn from the model; the others stay gold.
        shows_reference (`bool`): Whether the judge is the model itself, shown the reference.
        excluded_token_ids (`tuple[int, ...]`, *optional*): Never drawn: tokens that the judge does not have.
        on_progress (`Callable[[int, int], None]`, *optional*): Called with rows and tokens drawn since last time.

    Raises:
        ValueError: for a share outside (0, 1], or rows without a place after a first token.
    """
    from ..core.likelihood import label_nll
    from ..rollouts import SamplingOptions, TransformersEngine
    from ..rollouts.noise import derive_seed, uniform

    if not 0 < share <= 1:
        raise UsageError(f"`share` must be above 0 and at most 1, got {share}.")
    if not any(len(response) > 1 for response in responses):
        raise UsageError("No response has two tokens: there is no place after a first one.")
    masks = [
        (uniform(derive_seed(seed, "mask"), [row], len(response))[0] < share).tolist()
        for row, response in enumerate(responses)
    ]
    options = SamplingOptions(seed=seed, excluded_token_ids=excluded_token_ids)
    mixed = TransformersEngine(model, 0, max_batch_tokens, on_progress=on_progress).mix(
        prompts, responses, masks, options
    )
    differs = [[a != b for a, b in zip(own, gold, strict=True)] for own, gold in zip(mixed, responses, strict=True)]
    (gold,), best_after_gold = judge(responses, [responses])
    (other, own), best_after_mixed = judge(mixed, [responses, mixed])
    return _summarised(
        [_sums(row_mask, row_differs) for row_mask, row_differs in zip(masks, differs, strict=True)],
        [_after(row) for row in differs],
        differs,
        gold=(gold, best_after_gold),
        other=(other, best_after_mixed),
        own=(own, best_after_mixed),
        model_nll=_mean(label_nll(model, prompts, responses, responses, 0, max_batch_tokens)),
        shows_reference=shows_reference,
    )


def _sums(mask: list[bool], differs: list[bool]) -> tuple[float, float]:
    return float(sum(differs)), float(sum(mask))


def _after(differs: list[bool]) -> list[bool]:
    """Places right after a token that differs."""
    return [False, *differs[:-1]]


def _summarised(
    drawn: list[tuple[float, float]],
    places: list[list[bool]],
    differs: list[list[bool]],
    gold: tuple[list[list[float]], list[list[float]]],
    other: tuple[list[list[float]], list[list[float]]],
    own: tuple[list[list[float]], list[list[float]]],
    model_nll: float,
    shows_reference: bool,
) -> Diagnosis:
    after_gold, num_places = _probable(gold, places)
    after_other, _ = _probable(other, places)
    accepted, num_differing = _probable(own, differs)
    changes, draws = (np.array(column) for column in zip(*drawn, strict=True))
    estimates: dict[str, Any] = {
        "changed": _ratio(changes, draws),
        "after_gold": _ratio(after_gold, num_places),
        "after_other": _ratio(after_other, num_places),
        "kept": _ratio(after_other, after_gold),
        "accepted": _ratio(accepted, num_differing),
    }
    judge_nll = _mean(gold[0])
    is_read = not shows_reference or judge_nll <= READ * model_nll
    return Diagnosis(
        verdict=_verdict(estimates["changed"], estimates["kept"], estimates["accepted"], is_read),
        **estimates,
        model_nll=model_nll,
        judge_nll=judge_nll,
        num_rows=len(places),
        num_places=int(num_places.sum()),
    )


def _verdict(changed: Estimate, kept: Estimate, accepted: Estimate, is_read: bool) -> str:
    if changed.mean < HARDLY:
        return NOTHING
    if not is_read or math.isnan(kept.mean):
        return UNREADABLE
    # A judge that was itself trained on gold continues some mistakes as if they were right. Among tokens that it calls mistakes,
    # it is enough that gold is kept after half.
    enough = 1 / 2 if accepted.mean <= 1 / 3 else 2 / 3
    if kept.mean >= enough and kept.low > enough - 1 / 6:
        return STAYS
    if kept.mean <= 1 / 3 and kept.high < 1 / 2:
        return LOST
    return PARTLY


def _probable(
    judged: tuple[list[list[float]], list[list[float]]], places: list[list[bool]]
) -> tuple[np.ndarray, np.ndarray]:
    """For each row, how many labels at these places are probable, and how many places there are."""
    margin = -np.log(PROBABLE) + 1e-6
    probable = [
        sum(nll - best <= margin for nll, best, wanted in zip(row, row_best, row_places, strict=True) if wanted)
        for row, row_best, row_places in zip(*judged, places, strict=True)
    ]
    return np.array(probable, dtype=float), np.array([sum(row) for row in places], dtype=float)


def _ratio(sums: np.ndarray, counts: np.ndarray) -> Estimate:
    """Σ sums / Σ counts, rows being resampled whole."""
    if not counts.sum():
        return Estimate(float("nan"), float("nan"), float("nan"))
    draws = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=2000)
    totals = draws @ counts
    low, high = np.quantile((draws @ sums)[totals > 0] / totals[totals > 0], [0.025, 0.975])
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high))


def _mean(rows: list[list[float]]) -> float:
    return sum(map(sum, rows)) / sum(map(len, rows))
