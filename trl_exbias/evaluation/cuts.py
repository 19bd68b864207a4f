"""Where free running starts: contexts with the true tokens after them, from documents and from responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import UsageError


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Cuts:
    """
    Args:
        places (`list[tuple[int, int]]`): Document and first token of each context.
        contexts, horizons (`list[list[int]]`): Token ids.
        stride (`int`): Tokens from one start to the next.
    """

    places: list[tuple[int, int]]
    contexts: list[list[int]]
    horizons: list[list[int]]
    stride: int


def cut_documents(documents: Sequence[Sequence[int]], context_length: int, horizon: int, max_starts: int) -> Cuts:
    """
    Contexts of `context_length` tokens with `horizon` true ones after them, spread evenly over documents in token ids.

    There are at least `max_starts` of them where the documents have that many, and less than twice as many.

    Raises:
        ValueError: if no document is long enough.
    """
    from ..methods.dad_dagger.trajectories import starts

    length = context_length + horizon
    possible = sum(len(starts(len(document), length, 1)) for document in documents)
    if not possible:
        raise UsageError(
            f"No document has the {length} tokens of a context and a horizon; the longest has "
            f"{max(map(len, documents), default=0)}. Lower --context_length or --horizon."
        )
    stride = max(1, possible // max_starts)
    places = [(i, start) for i, document in enumerate(documents) for start in starts(len(document), length, stride)]
    return Cuts(
        places,
        [list(documents[i][start : start + context_length]) for i, start in places],
        [list(documents[i][start + context_length : start + length]) for i, start in places],
        stride,
    )


def response_ids(tokenizer: "PreTrainedTokenizerBase", response: str) -> list[int]:
    """Token ids of a written response, with the token that ends it."""
    return tokenizer(response + (tokenizer.eos_token or ""), add_special_tokens=False)["input_ids"]
