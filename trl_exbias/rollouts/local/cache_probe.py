"""Which cache a model can be rolled out with, found by trying it on a few tokens: no list of architectures would hold for long."""

import logging
from collections.abc import Callable
from enum import Enum
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ...core.modeling import agreement_tolerance, base_causal_lm, relative_distance
from ...core.reading import read
from ...core.spans import attention_window
from .sessions import DenseSession, RaggedSession


logger = logging.getLogger(__name__)


class Rows(Enum):
    """How the rows of a batch can be continued."""

    RAGGED = "each at its own position, with a `RaggedCache`"
    ALIKE = "all at the same position, with the model's own cache"
    REREAD = "each at its own position, read again from its start"


# What is in the way of each cache, `None` for nothing, by model: an architecture does not change in training.
_found: WeakKeyDictionary[nn.Module, dict[Rows, str | None]] = WeakKeyDictionary()


def rows_of(model: nn.Module, length: int) -> Rows:
    """
    The fastest way to continue batches of up to `length` tokens in which every row comes out as it would alone.

    Tries it on a few tokens, within [`inference`], and says once in the log what a model cannot do.
    """
    window = attention_window(base_causal_lm(model).config)
    fits = window is None or length <= window
    known = _found.setdefault(base_causal_lm(model), {})
    is_new = Rows.RAGGED not in known and fits
    ragged = _problem(model, Rows.RAGGED, _ragged_rows_are_off) if fits else "a window limits its attention"
    if ragged is None:
        return Rows.RAGGED
    is_new = is_new or Rows.ALIKE not in known
    own = _problem(model, Rows.ALIKE, _own_cache_is_off)
    name = type(base_causal_lm(model)).__name__
    if is_new and own is not None:
        logger.warning(
            f"{name} does not take a batch of rows at different positions ({ragged}), and its own cache is not reliable "
            f"({own}): every step of a rollout reads the sequences from their start. The tokens are right, but it takes longer."
        )
    elif is_new and fits:
        logger.warning(
            f"{name} does not take a batch of rows at different positions ({ragged}): rolling out one token at a time, in "
            "batches of prompts of equal length."
        )
    return Rows.ALIKE if own is None else Rows.REREAD


def takes_own_cache(model: nn.Module) -> bool:
    """Whether rows at one position come out right with the model's own cache, also where rows are dropped and repeated."""
    return _problem(model, Rows.ALIKE, _own_cache_is_off) is None


def _problem(model: nn.Module, rows: Rows, probe: Callable[[nn.Module], str | None]) -> str | None:
    known = _found.setdefault(base_causal_lm(model), {})
    if rows not in known:
        try:
            known[rows] = probe(model)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Whatever a foreign architecture raises at an unusual cache means the same: it cannot take it.
            known[rows] = f"{type(error).__name__}: {error}"
    return known[rows]


def _ragged_rows_are_off(model: nn.Module) -> str | None:
    tokens, expected = _read_whole(model, 6)
    session = RaggedSession(model, 0, 2, 6)
    session.prefill(tokens[:, :3].tolist())
    # The second row steps back and writes its third token again.
    found = session.step(torch.stack([tokens[0, 3:6], tokens[1, 2:5]]), [3, 2])
    return _difference(model, found, torch.stack([expected[0, 3:6], expected[1, 2:5]]))


def _own_cache_is_off(model: nn.Module) -> str | None:
    tokens, expected = _read_whole(model, 10)
    found, right = [], []
    # Prefixes shorter and longer than the kernel of a convolution (4 tokens, as a rule). The last one meets whatever a
    # session of as many rows before it has left in the modules.
    for length in (7, 2, 1):
        session = DenseSession(model)
        found.append(session.prefill(tokens[:, :length].tolist()))
        right.append(expected[:, length - 1])
        rows = [0, 1]
        for position, kept in ((length, [0, 1]), (length + 1, [1, 1]), (length + 2, [1])):
            if kept != [0, 1]:
                session.keep(kept)
                rows = [rows[row] for row in kept]
            found.append(session.step(tokens[rows, position : position + 1], [position] * len(rows))[:, 0])
            right.append(expected[rows, position])
    return _difference(model, torch.cat(found), torch.cat(right))


def _read_whole(model: nn.Module, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of tokens, and what a forward over all of them makes of them."""
    vocabulary = base_causal_lm(model).get_input_embeddings().num_embeddings
    tokens = torch.randint(vocabulary, (2, length), generator=torch.Generator().manual_seed(0))
    return tokens, read(model, input_ids=tokens, use_cache=False).last_hidden_state


def _difference(model: nn.Module, found: torch.Tensor, expected: torch.Tensor) -> str | None:
    distance = relative_distance(found, expected)
    if distance < agreement_tolerance(model, expected.dtype):
        return None
    return f"its hidden states came out {distance:.1e} off"
