"""How the phases of the package's own methods are planned: torch-free, for `exbias check` and `exbias compare`."""

from typing import Any

from ..settings.phase_plan import MeanLengths, PhasePlan


class MixingPlan(PhasePlan):
    """BASH: gold with tokens of the policy's in it."""

    title = "BASH"

    def branches(self, args: Any, iteration: int) -> int:
        return int(iteration > 0 and args.beta > 0)

    def shown_template(self, args: Any) -> str | None:
        return None if args.gate is None else args.gate_template

    def label_tokens(self, args: Any, mean: MeanLengths, iteration: int, rows: int, rolled_out: int) -> float:
        return 0 if args.gate is None else rolled_out * (mean.correction + mean.branch)


class ScheduledSamplingPlan(MixingPlan):
    """The same, drawn again in every step."""

    title = "Scheduled sampling"
    draws_in_steps = True

    def online_tokens(self, args: Any, mean: MeanLengths, iteration: int, mixed: float, trained: int) -> float:
        return mixed * mean.response if self.branches(args, iteration) else 0


class RACPlan(PhasePlan):
    """Own answers, and the answer once more after question and reference, for its labels."""

    title = "RAC"
    dataset_forms = ("prompt-completion", "messages")
    answers_freely = reads_for_labels = True

    def shown_template(self, args: Any) -> str | None:
        return args.correction_template

    def label_tokens(self, args: Any, mean: MeanLengths, iteration: int, rows: int, rolled_out: int) -> float:
        return rolled_out * (mean.correction + mean.branch)


class VerifiedAnswersPlan(PhasePlan):
    """Several own answers, of which at most a number are kept as a verifier accepts."""

    title = "Verified answers"
    dataset_forms = ("prompt-completion", "messages")
    answers_freely = has_verifier = True

    def branches(self, args: Any, iteration: int) -> int:
        return int(iteration > 0) * min(args.num_samples, args.num_kept or args.num_samples)

    def new_branches(self, args: Any, iteration: int) -> int:
        return int(iteration > 0) * args.num_samples


class SPINPlan(PhasePlan):
    """Own answers, and gold and own answer once more after their context, for their likelihoods."""

    title = "SPIN"
    dataset_forms = ("prompt-completion", "messages")
    answers_freely = reads_for_labels = True

    def label_tokens(self, args: Any, mean: MeanLengths, iteration: int, rows: int, rolled_out: int) -> float:
        return rolled_out * (2 * mean.context + mean.response + mean.branch)


class DaDDaggerPlan(PhasePlan):
    """A student's rollouts of several iterations, labelled by a teacher."""

    title = "DaD-DAgger"
    reads_documents = True
    has_teacher = True

    def branches(self, args: Any, iteration: int) -> int:
        # The first iteration trains on the data alone.
        return max(0, min(iteration - 1, args.rollouts_in_use))

    def label_tokens(self, args: Any, mean: MeanLengths, iteration: int, rows: int, rolled_out: int) -> float:
        if iteration == 0 or args.alpha == 1 or not args.cache_teacher:
            return 0
        gold = rows * (mean.context + mean.response) if iteration == 1 else 0
        return gold + rolled_out * (mean.context + mean.branch)

    def online_tokens(self, args: Any, mean: MeanLengths, iteration: int, mixed: float, trained: int) -> float:
        return trained if iteration > 0 and args.alpha < 1 and not args.cache_teacher else 0
