"""How far completions fall into repetition, run on, or stop short."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..core.errors import UsageError
from .figures import Figure


TokenIds = Sequence[int]
#: n-grams of rep-n and of distinct-n.
REP_NGRAMS = (2, 3, 4)
DISTINCT_NGRAMS = (1, 2)


def degeneration(
    completions: Mapping[str, TokenIds],
    references: Mapping[str, TokenIds] | None = None,
    truncated: Mapping[str, bool] | None = None,
    stop_token_ids: Collection[int] = (),
    settings: dict[str, Any] | None = None,
) -> dict[str, Figure]:
    """
    Repetition, variety and length of completions, on token ids.

    Args:
        completions (`Mapping[str, Sequence[int]]`): Token ids of each completion, by the prompt's id.
        references (`Mapping[str, Sequence[int]]`, *optional*): Gold responses, for `length_ratio`.
        truncated (`Mapping[str, bool]`, *optional*): Whether the token limit cut a completion, for `truncation_rate`.
        stop_token_ids (`Collection[int]`, *optional*): Do not count where they end a completion or a reference.
        settings (`dict`, *optional*):
            For every figure: what else shapes them, above all the tokenizer, whose tokens are what is counted here.

    Returns:
        `dict[str, Figure]`:
            - `rep_2`, `rep_3`, `rep_4`: [`rep_n`] of each completion; missing for one that is shorter than n tokens;
            - `distinct_1`, `distinct_2`: [`distinct_n`] of the set;
            - `length`: in tokens; `length_ratio`: to the reference's; missing where the reference is empty or not there;
            - `empty_rate`, `truncation_rate`: shares of the completions.

    Raises:
        ValueError: if `truncated` lacks a completion.
    """
    stops = set(stop_token_ids)
    rows = {prompt: _without_stop(token_ids, stops) for prompt, token_ids in completions.items()}
    shared = {**(settings or {}), "unit": "tokens"}

    def figure(name: str, values: Mapping[str, float | None], better: bool | None, **more: Any) -> Figure:
        return Figure.over_prompts(name, values, higher_is_better=better, settings={**shared, **more})

    figures = [
        figure(f"rep_{n}", {prompt: rep_n(row, n) for prompt, row in rows.items()}, False, n=n) for n in REP_NGRAMS
    ]
    figures += [figure(f"distinct_{n}", distinct_shares(rows, n), True, n=n) for n in DISTINCT_NGRAMS]
    figures.append(figure("length", {prompt: len(row) for prompt, row in rows.items()}, None))
    if references is not None:
        true = {prompt: _without_stop(row, stops) for prompt, row in references.items()}
        ratios = {prompt: len(row) / len(true[prompt]) if true.get(prompt) else None for prompt, row in rows.items()}
        figures.append(figure("length_ratio", ratios, None))
    figures.append(figure("empty_rate", {prompt: not row for prompt, row in rows.items()}, False))
    if truncated is not None:
        missing = [prompt for prompt in rows if prompt not in truncated]
        if missing:
            raise UsageError(f"`truncated` lacks {len(missing)} of {len(rows)} completions, among them {missing[0]!r}.")
        figures.append(figure("truncation_rate", {prompt: bool(truncated[prompt]) for prompt in rows}, False))
    return {made.name: made for made in figures}


def rep_n(token_ids: TokenIds, n: int) -> float | None:
    """
    Repetition of a completion (seq-rep-n of Welleck et al., 2020): `1 − unique n-grams / n-grams`.

    Between 0, no n-gram occurs twice, and 1; `None` for fewer than n tokens, which hold no n-gram.
    """
    grams = _ngrams(token_ids, n)
    return 1 - len(set(grams)) / len(grams) if grams else None


def distinct_n(completions: Sequence[TokenIds], n: int) -> float | None:
    """
    Variety of a set of completions (distinct-n of Li et al., 2016): unique n-grams of all ÷ n-grams of all.

    It falls with the amount of text, whoever wrote it: compare sets of the same prompts and about the same length.
    """
    counts = Counter(gram for token_ids in completions for gram in _ngrams(token_ids, n))
    return len(counts) / counts.total() if counts else None


def distinct_shares(completions: Mapping[str, TokenIds], n: int) -> dict[str, float | None]:
    """
    What each completion contributes to distinct-n: values whose mean is [`distinct_n`] of the set.

    distinct-n is not a mean over prompts, and a bootstrap of it would be wrong: a prompt that is drawn twice brings n-grams
    but no new ones. So these are jackknife influences, `D + (P − 1) · (mean of D₋ⱼ − D₋ᵢ)` with D₋ᵢ the distinct-n of the
    set of P without completion i: their spread is the jackknife's, and two sets of the same prompts pair up.
    """
    whole = Counter(gram for token_ids in completions.values() for gram in _ngrams(token_ids, n))
    total = whole.total()
    without: dict[str, float | None] = {}
    for prompt, token_ids in completions.items():
        own = Counter(_ngrams(token_ids, n))
        left = total - own.total()
        only_here = sum(count == whole[gram] for gram, count in own.items())
        without[prompt] = (len(whole) - only_here) / left if left else None
    there = {prompt: value for prompt, value in without.items() if value is not None}
    if not total or len(there) < len(without):  # no n-gram at all, or all of them in one completion
        return dict.fromkeys(completions, len(whole) / total if total else None)
    mean = sum(there.values()) / len(there)
    return {prompt: len(whole) / total + (len(there) - 1) * (mean - value) for prompt, value in there.items()}


def _ngrams(token_ids: TokenIds, n: int) -> list[tuple[int, ...]]:
    return list(zip(*(token_ids[i:] for i in range(n)), strict=False))


def _without_stop(token_ids: TokenIds, stops: set[int]) -> list[int]:
    row = list(token_ids)
    while row and row[-1] in stops:
        row.pop()
    return row
