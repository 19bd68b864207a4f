"""A diagnosis in words: one paragraph, and what it speaks for."""

from .diagnosis import LOST, NOTHING, PARTLY, STAYS, UNREADABLE, Diagnosis
from .exposure_bias import Estimate


_METHODS = {
    STAYS: "Gold is still the right next token after a wrong one: hard labels of gold on own states can teach the model to "
    "recover. Take BASH with β = 1 and a small `rollout_weight` (0.03 over many iterations, or 0.1 over two, which costs more "
    "whole responses), if the prompt lets the model find the answer again.",
    LOST: "There, gold's next token is mostly no longer right: hard labels of gold on own states would teach the model to ignore "
    "what it has written. Take labels that follow the model's own prefix: those of a teacher that is better than what SFT makes of "
    "the model (next-token distillation, or DaD-DAgger with α = 0, ImitKD). Without one, stay with SFT. Do not take BASH, or DaD "
    "with α above 0.",
    PARTLY: "Gold stays right after some of the tokens that differ, and not after others. SFT is the safe choice. If you try BASH, "
    "keep `rollout_weight` small (0.1), and judge it by answers or KL on own states, not by free-running cross-entropy.",
    NOTHING: "The model hardly deviates from gold: there is next to nothing to learn from its own states. Stay with SFT.",
}
#: Share of the drawn tokens: above it, a model may not have been trained on such data yet.
_FAR = 0.6
#: What the judge of a verdict cannot see, by whether it is the model itself, shown the reference.
_CAUTIONS = {
    (
        LOST,
        False,
    ): "A teacher that was trained on gold alone continues a mistake as if it were right. If your answers are right "
    "or wrong, ask the model itself: leave out --teacher.",
    (
        STAYS,
        True,
    ): "A model that copies its reference, whatever comes before, finds gold right everywhere. If several answers "
    "are right, ask a teacher: --teacher.",
}
_SFT_FIRST = (
    "Most of what the model drew differs: if it has not been trained on such data yet, do SFT first, and ask again."
)


def explanation(found: Diagnosis, judge: str, shows_reference: bool) -> str:
    """
    Args:
        judge (`str`): Who said how probable tokens are, for a reader.
        shows_reference (`bool`): Whether it is the model itself, shown the reference.
    """
    drawn = f"{_share(found.changed)} of the tokens that the model drew on {found.num_rows} rows differ from gold."
    if found.verdict == NOTHING:
        return f"{drawn} {_METHODS[NOTHING]}"
    if found.verdict == UNREADABLE:
        return f"{drawn} {_unreadable(found, judge, shows_reference)}"
    sentences = [
        drawn,
        f"Right after such a token ({found.num_places} places), {judge} finds gold's next token probable at "
        f"{_share(found.after_other)} of the places, and after gold at {found.after_gold.mean:.0%} of the same places: "
        f"{_share(found.kept)} are kept.",
        f"It finds {found.accepted.mean:.0%} of the differing tokens themselves probable.",
        _METHODS[found.verdict],
        _CAUTIONS.get((found.verdict, shows_reference), ""),
        _SFT_FIRST if found.changed.mean > _FAR else "",
    ]
    return " ".join(filter(None, sentences))


def _unreadable(found: Diagnosis, judge: str, shows_reference: bool) -> str:
    if shows_reference:
        return (
            f"{judge[:1].upper()}{judge[1:]} predicts gold with {found.judge_nll:.2f} nats per token, and without the reference "
            f"with {found.model_nll:.2f}: it does not read the reference, and can neither say whether gold stays right nor "
            "correct itself (RAC). Give another --correction_template, or a --teacher."
        )
    return (
        f"{judge[:1].upper()}{judge[1:]} finds gold's tokens probable nowhere, not even after gold: it cannot tell. Give another "
        "--teacher."
    )


def _share(estimate: Estimate) -> str:
    return f"{estimate.mean:.0%} [{estimate.low:.0%}, {estimate.high:.0%}]"
