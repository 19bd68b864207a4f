"""BASH's gold labels, trusted as far as the policy finds them likely once it is shown the reference."""

from collections.abc import Callable
from dataclasses import replace

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..chat.conversations import message_columns
from ..core.branches import Branch
from ..core.data import Example
from ..core.errors import UsageError
from ..core.gates import Gate
from ..rollouts.counting import LABEL_LENGTH
from .rac_template import CorrectionTemplate


#: Reads contexts, tokens and labels; gives for each row `value(logits, labels)` of its labels, in order.
Reader = Callable[[Callable, list[list[int]], list[list[int]], list[list[int]]], list[list[float]]]


class ReferenceGate:
    """
    Weighs gold labels after tokens of the policy's own, `w_j` of q_j = p_θ(· | f(x, y), ŷ_<j).

    Before the first token that is not gold's, the label counts whole.

    Args:
        gate ([`Gate`]): The weight of a label.
        template ([`CorrectionTemplate`]): f.
        read (`Callable`): Reads with the policy.
        max_positions (`int`, *optional*): The policy's; a row that does not fit with f(x, y) counts whole.
        count (`Callable[[str, float, float], None]`): Takes metrics.
    """

    def __init__(
        self,
        gate: Gate,
        template: CorrectionTemplate,
        read: Reader,
        max_positions: int | None,
        count: Callable[[str, float, float], None],
    ):
        self.gate, self.template, self.read = gate, template, read
        self.max_positions, self.count = max_positions, count

    def gated(
        self,
        examples: list[Example],
        branches: list[Branch],
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None,
    ) -> list[Branch]:
        """The branches of some examples, with a weight for each token."""
        contexts = [self.template.context_ids(example.row, tokenizer, chat_template) for example in examples]
        rows = [row for row, branch in enumerate(branches) if self._fits(contexts[row], branch)]
        asked = [contexts[row] for row in rows], [branches[row].input_ids for row in rows]
        read = self.read(self.gate.weights, *asked, [branches[row].labels for row in rows])
        self.count(LABEL_LENGTH, sum(map(len, (*asked[0], *asked[1]))), len(rows))
        weighed = [replace(branch, weight=[1.0] * len(branch.input_ids)) for branch in branches]
        for row, found in zip(rows, read, strict=True):
            weighed[row] = self._weighed(examples[row], branches[row], found)
        return weighed

    def _weighed(self, example: Example, branch: Branch, found: list[float]) -> Branch:
        places = [place for place, label in enumerate(branch.labels) if label != -100]
        own = [a != b for a, b in zip(branch.input_ids, example.response_ids, strict=True)]
        first = own.index(True) + 1 if True in own else len(own)
        weights = [1.0] * len(own)
        for place, weight in zip(places, found, strict=True):
            self.count("gate/visited" if place >= first else "gate/gold", weight, 1)
            if place >= first:
                weights[place] = weight
        return replace(branch, weight=weights)

    def _fits(self, context: list[int], branch: Branch) -> bool:
        fits = self.max_positions is None or len(context) + len(branch.input_ids) <= self.max_positions
        self.count("gate/unread_rate", not fits, 1)
        return fits


def check_shown(
    template: CorrectionTemplate, rows: Dataset, tokenizer: PreTrainedTokenizerBase, chat_template: str | None
) -> None:
    """
    Rejects rows whose reference cannot be shown.

    Raises:
        ValueError: for plain text, which has no prompt, and as [`CorrectionTemplate.check`] does.
    """
    if not message_columns(rows) and "prompt" not in rows.column_names:
        raise UsageError("`gate` shows the policy the reference: it needs prompt-completion or conversational data.")
    template.check(rows, tokenizer, chat_template)
