"""Lists of token ids, as engines and readers take them."""

from collections.abc import Sequence


TokenIds = Sequence[int]


def check_prompts(prompts: Sequence[TokenIds], *others: Sequence, example_ids: Sequence[int] | None) -> list[int]:
    """Validates an engine call's lists and returns the example ids, `0..n-1` by default."""
    ids = list(range(len(prompts))) if example_ids is None else list(example_ids)
    lengths = {len(prompts), len(ids), *map(len, others)}
    if len(lengths) != 1:
        raise ValueError(f"All lists of one call must have the same length, got lengths {sorted(lengths)}.")
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(
                f"Prompt {index} is empty: a causal language model needs at least one token to start from."
            )
    return ids
