"""Repetition and variety as their papers write them, one n-gram at a time."""


def ngrams(tokens: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def rep_n(tokens: list[int], n: int) -> float:
    """Welleck et al. (2020): the share of n-grams that have occurred before."""
    seen, again = [], 0
    for gram in ngrams(tokens, n):
        if gram in seen:
            again += 1
        else:
            seen.append(gram)
    return again / len(ngrams(tokens, n))


def distinct_n(rows: list[list[int]], n: int) -> float:
    """Li et al. (2016): distinct n-grams of all the text over n-grams of all the text."""
    every = [gram for tokens in rows for gram in ngrams(tokens, n)]
    return len(set(every)) / len(every)


def jackknife_error(rows: list[list[int]], n: int) -> float:
    """Standard error of distinct-n: leave out each row in turn (Efron, 1982)."""
    left_out = [distinct_n(rows[:i] + rows[i + 1 :], n) for i in range(len(rows))]
    mean = sum(left_out) / len(rows)
    return ((len(rows) - 1) / len(rows) * sum((value - mean) ** 2 for value in left_out)) ** 0.5
