"""ROUGE-1, ROUGE-2 and ROUGE-L against one or more references, in any script."""

import logging
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from tqdm.auto import tqdm

from ..core.errors import MissingPackageError, UsageError, UsageTypeError
from .figures import Figure


logger = logging.getLogger(__name__)

TOKENIZERS = ("auto", "default", "unicode")
#: `"auto"` takes rouge-score's own tokenizer up to this share of letters, in the references, that it would drop.
MAX_DROPPED_LETTERS = 0.01
_TYPES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


def rouge(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    tokenizer: str = "auto",
    use_stemmer: bool = True,
) -> dict[str, Figure]:
    """
    F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin, 2004) by `rouge-score`.

    With several references a prompt's value is the best over them, by F1 and for each measure by itself, as in
    rouge-score's `score_multi`. An empty prediction has 0; a prompt without a prediction, or whose references hold no
    token, has no value.

    Args:
        predictions (`Mapping[str, str]`): By the prompt's id.
        references (`Mapping[str, Sequence[str]]`): One or more for each prompt.
        tokenizer (`str`, *optional*, defaults to `"auto"`):
            `"default"`: rouge-score's, runs of a–z and 0–9 after lower-casing: the published figures for English. It drops
            every other letter, so that text in another script scores 0.0 against itself. `"unicode"`: runs of letters,
            marks and digits of any script after case folding (NFKC), and each character where a script puts no spaces
            between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese). `"auto"`: `"default"` unless over 1 % of the
            letters in the references are outside a–z. The pick is in the figures' settings.
        use_stemmer (`bool`, *optional*, defaults to `True`):
            Porter's stemmer, which is for English: with the `"default"` tokenizer alone.

    Returns:
        `dict[str, Figure]`: `rouge_1`, `rouge_2` and `rouge_l`, between 0 and 1.

    Raises:
        TypeError, ValueError: for a prompt without references, a string in place of their list, an unknown tokenizer.
        ImportError: if rouge-score is not installed.
    """
    if tokenizer not in TOKENIZERS:
        raise UsageError(f"`tokenizer={tokenizer!r}` is not one of {', '.join(TOKENIZERS)}.")
    _check(predictions, references)
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import DefaultTokenizer
    except ImportError as error:
        raise MissingPackageError("ROUGE needs rouge-score: `pip install trl-exbias[eval]`.") from error
    if tokenizer == "auto":
        tokenizer = tokenizer_for(text for row in references.values() for text in row)
    stems = use_stemmer and tokenizer == "default"
    tokens = DefaultTokenizer(stems) if tokenizer == "default" else UnicodeTokenizer()
    scorer = RougeScorer(list(_TYPES.values()), tokenizer=tokens)
    values: dict[str, dict[str, float | None]] = {name: {} for name in _TYPES}
    started = time.perf_counter()
    for prompt, row in tqdm(references.items(), desc="ROUGE", unit="prompt", leave=False, delay=5):
        prediction = predictions.get(prompt)
        readable = [text for text in row if tokens.tokenize(text)]
        scores = None if prediction is None or not readable else scorer.score_multi(readable, prediction)
        for name, kind in _TYPES.items():
            values[name][prompt] = None if scores is None else float(scores[kind].fmeasure)
    logger.info(f"ROUGE of {len(references)} prompts in {time.perf_counter() - started:.1f} s.")
    settings = {"tokenizer": tokenizer, "use_stemmer": stems, "over_references": "best F1"}
    return {name: Figure.over_prompts(name, found, settings=settings) for name, found in values.items()}


def tokenizer_for(texts: Iterable[str]) -> str:
    """`"default"`, or `"unicode"` where over 1 % of the letters are outside a–z; see [`rouge`]."""
    letters = dropped = 0
    for text in texts:
        for character in text.lower():
            if character.isalpha():
                letters += 1
                dropped += not character.isascii()
    return "unicode" if dropped > MAX_DROPPED_LETTERS * letters else "default"


class UnicodeTokenizer:
    """Words of any script, and characters where words are not told apart by spaces; see [`rouge`]."""

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, as rouge-score asks a tokenizer for them."""
        return _word().findall(unicodedata.normalize("NFKC", text).casefold())


@lru_cache(maxsize=1)
def _word() -> Any:
    import regex  # comes with transformers; `re` splits Indic words at their vowel signs

    spaceless = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    return regex.compile(rf"(?V1)[{spaceless}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{spaceless}]]+")


def _check(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    for prompt, row in references.items():
        if isinstance(row, str):
            raise UsageTypeError(f"The references of prompt {prompt!r} are a string; a list of strings is needed.")
    bare = [prompt for prompt in predictions if not references.get(prompt)]
    if bare:
        named = ", ".join(map(repr, bare[:5])) + (f" and {len(bare) - 5} more" if len(bare) > 5 else "")
        raise UsageError(f"There is no reference for {len(bare)} of {len(predictions)} predictions: {named}.")
