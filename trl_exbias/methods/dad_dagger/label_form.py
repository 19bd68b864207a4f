"""In which form a teacher's labels are kept."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ...core.branches import Branch


#: A context and a branch after it.
Content = tuple[list[int], Branch]
#: Works out the labels of some contents, for the cache in a folder; calls its third argument with the number that are done.
#: `None` where it was told to stop before all were there.
Reader = Callable[[Path, list[Content], Callable[[int], object]], list[dict[str, torch.Tensor]] | None]


@dataclass(frozen=True)
class LabelForm:
    """
    Args:
        vocab_size (`int`): Tokens that student and teacher have in common.
        top_k (`int`, *optional*): Keep this many probabilities instead of hidden states.
        temperature (`float`): Temperature of the probabilities that are kept.
        batch_tokens (`int`): Tokens that a teacher reads at once.
    """

    vocab_size: int
    top_k: int | None
    temperature: float
    batch_tokens: int

    def folder(self, teacher: str) -> str:
        """The folder of a teacher's labels: those of another teacher, or in another form, are others."""
        form = "hidden" if self.top_k is None else f"top{self.top_k}-t{self.temperature:g}"
        return f"{teacher}-{form}-v{self.vocab_size}"
