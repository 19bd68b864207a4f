"""Strings that end a response: found in its decoded text, to the token, by the same criterion in every engine."""

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, StopStringCriteria

from ..core.errors import UsageError
from ..core.token_ids import TokenIds


# No vocabulary has this token: it matches nothing.
_NO_TOKEN = 2**31 - 1


class StopStrings:
    """
    Strings that end a response after the token that completes one; that token is kept, with whatever follows the string in it.

    The criterion is transformers' `StopStringCriteria`, as in `model.generate(stop_strings=...)`. It reads the response
    alone: a string that begins in the prompt does not count, as in vLLM, and unlike in `generate`.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The policy's.
        strings (`Sequence[str]`): At least one; none is empty.

    Raises:
        ValueError: if there is no string, an empty one, or none that the tokenizer can write.

    Example:

    ```python
    >>> options = SamplingOptions(stop_strings=StopStrings(tokenizer, ["\\n\\n", "Question:"]))
    ```
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]):
        problem = stop_strings_problem(strings)
        if problem is not None:
            raise UsageError(problem)
        self.strings = tuple(strings)
        self._tokenizer = tokenizer
        self._folder: str | None = None
        try:
            self._criteria = StopStringCriteria(tokenizer, list(self.strings))
        except ValueError as error:
            raise UsageError(
                f"`stop_strings={list(self.strings)!r}` cannot be written in the tokenizer's tokens: no response would end."
            ) from error
        # A token has at least one byte of a string that it is a part of.
        self._width = max(len(string.encode()) for string in self.strings)

    @classmethod
    def load(cls, tokenizer: str, strings: list[str]) -> "StopStrings":
        """What [`saved`] tells of, in another process; `tokenizer` is a folder."""
        return cls(AutoTokenizer.from_pretrained(tokenizer), strings)

    def saved(self) -> dict[str, Any]:
        """The arguments of [`load`]. The tokenizer's folder goes with this object."""
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="trl-exbias-tokenizer-")
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            self._tokenizer.save_pretrained(self._folder)
        return {"tokenizer": self._folder, "strings": [*self.strings]}

    def end(self, responses: Sequence[TokenIds]) -> list[bool]:
        """Whether the last token of each response completes a string."""
        if not responses:
            return []
        tails = [[int(token) for token in response[-self._width :]] for response in responses]
        longest = max(1, *map(len, tails))
        tokens = torch.tensor([[*[_NO_TOKEN] * (longest - len(tail)), *tail] for tail in tails])
        return self._criteria(tokens, None).tolist()

    def cut(self, response: list[int]) -> list[int]:
        """A response up to the first token that completes a string; the whole response where none does."""
        ends = self.end([response[max(0, stop - self._width) : stop] for stop in range(1, len(response) + 1)])
        return response[: ends.index(True) + 1] if True in ends else response

    def said(self, response: list[int]) -> list[int]:
        """A response without the tokens of the string that ended it; whole if none did."""
        if not self.end([response])[0]:
            return response
        tails = self.end([response[start:] for start in range(len(response))])
        return response[: max(start for start, ends in enumerate(tails) if ends)]

    def text_before(self, text: str) -> str:
        """A response's text up to the first of the strings; the whole text where there is none."""
        return text[: min((text.index(string) for string in self.strings if string in text), default=len(text))]


def stop_strings_problem(strings: object) -> str | None:
    """What is wrong with a setting of `stop_strings`, in a line; `None` if nothing is."""
    is_list = isinstance(strings, (list, tuple)) and len(strings) > 0
    if is_list and all(isinstance(string, str) and string for string in strings):  # type: ignore[attr-defined]
        return None
    return f"`stop_strings` must be a list of strings, none of them empty, got {strings!r}."
