"""Which examples of a micro-batch share a row, so that little of it is padding and attention stays cheap."""

from torch import nn

from .modeling import backbone, base_causal_lm


def pack(lengths: list[int], break_even: float, limit: int | None = None) -> list[list[int]]:
    """
    Examples by row. What a batch costs is taken to be `rows · length · (1 + length / break_even)`: the rows' common length is
    what is computed, and a token attends over a whole row.

    Args:
        lengths (`list[int]`): Lengths of the examples.
        break_even (`float`): Tokens of a row at which its attention costs as much as everything else; see [`break_even_of`].
        limit (`int`, *optional*): Longest row; an example that is longer has a row of its own.

    Returns:
        `list[list[int]]`: For each row its examples, in the order of the batch. The order of rows is that of their first example.
    """
    best: list[list[int]] = [[i] for i in range(len(lengths))]
    best_cost = _cost(best, lengths, break_even)
    for number in range(len(lengths) - 1, 0, -1):
        rows = _balanced(lengths, number)
        longest = max(sum(lengths[i] for i in row) for row in rows)
        if limit is not None and longest > limit:
            break  # fewer rows are longer ones
        cost = _cost(rows, lengths, break_even)
        if cost < best_cost:
            best, best_cost = rows, cost
    return sorted(best)


def _balanced(lengths: list[int], number: int) -> list[list[int]]:
    """Examples in `number` rows of about the same length: the longest first, each into the shortest row."""
    rows: list[list[int]] = [[] for _ in range(number)]
    filled = [0] * number
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = min(range(number), key=lambda row: (filled[row], row))
        rows[row].append(i)
        filled[row] += lengths[i]
    return [sorted(row) for row in rows if row]


def _cost(rows: list[list[int]], lengths: list[int], break_even: float) -> float:
    length = max(sum(lengths[i] for i in row) for row in rows)
    return len(rows) * length * (1 + length / break_even)


def break_even_of(model: nn.Module) -> float:
    """
    Tokens of a row at which attending over them costs as much as the layers' weights.

    A token costs 2 operations a weight of a layer, and 4 · length · hidden size in its attention.
    """
    config = base_causal_lm(model).config.get_text_config()
    embeddings = {id(p) for p in base_causal_lm(model).get_input_embeddings().parameters()}
    weights = sum(p.numel() for p in backbone(model).parameters() if id(p) not in embeddings)
    layers, width = config.num_hidden_layers, config.hidden_size
    return max(1.0, weights / layers / (2 * width))
