"""How a method's phases are planned, in numbers and without torch: what `exbias check` and `exbias compare` know of a method."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MeanLengths:
    """Mean tokens of a row: its context, its response, its rollout (at most), and the context of a correction (RAC)."""

    context: float
    response: float
    branch: float
    correction: float = 0.0


class PhasePlan:
    """
    What a method makes of its rows. The methods below hold for one that rolls out one branch a row before each iteration, as
    long as the gold response; a method that differs overrides what differs, and names its plan in the registry or as
    `phase_plan` of its trainer.
    """

    #: The method's name in messages.
    title = "Iterative SFT"
    #: Forms of data in which the method makes sense, and whether plain text is read as whole documents.
    dataset_forms: tuple[str, ...] = ("prompt-completion", "messages", "text", "tokenized")
    reads_documents = False
    #: Whether the policy's responses are as long as it makes them, up to `max_new_tokens`.
    answers_freely = False
    #: Whether the policy reads what it has drawn once more, in batches of its own.
    reads_for_labels = False
    #: Whether what is drawn is drawn within the training steps.
    draws_in_steps = False
    #: Whether a teacher is configured (`teacher_model`), and rows are trajectories where they are plain text.
    has_teacher = False
    #: Whether a verifier reads the rows' gold answers.
    has_verifier = False

    def branches(self, args: Any, iteration: int) -> int:
        """Rollouts that a row has in addition to its gold branch; iteration 0 is the SFT phase."""
        return int(iteration > 0)

    def new_branches(self, args: Any, iteration: int) -> int:
        """Rollouts of a row that are made just before the iteration; a method may keep fewer."""
        return 0 if self.draws_in_steps else min(1, self.branches(args, iteration))

    def branch_length(self, args: Any, context: float, response: float) -> float:
        """Tokens of a rollout; where it may stop earlier, at most."""
        if not self.answers_freely:
            return response
        room = math.inf if args.max_length is None else args.max_length - context
        return max(0, min(args.max_new_tokens, room))

    def shown_template(self, args: Any) -> str | None:
        """The template that shows the policy the reference of each row; `None` where it is shown none."""
        return None

    def label_tokens(self, args: Any, mean: MeanLengths, iteration: int, rows: int, rolled_out: int) -> float:
        """Tokens read for labels before an iteration of that many rows and new rollouts."""
        return 0

    def online_tokens(self, args: Any, mean: MeanLengths, iteration: int, mixed: float, trained: int) -> float:
        """Tokens drawn, or read by a teacher, within an iteration's steps: it mixes `mixed` rows and trains on `trained`."""
        return 0
