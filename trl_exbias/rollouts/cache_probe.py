"""Which cache a model can be rolled out with, found by trying it on a few tokens: no list of architectures would hold for long."""

import logging
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..modeling import agreement_tolerance, attention_window, base_causal_lm
from .sessions import DenseSession, RaggedSession, read


logger = logging.getLogger(__name__)
# What was found for each model: an architecture does not change in training, and each probe is a few forwards.
_found: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()


def takes_ragged_rows(model: nn.Module, length: int) -> bool:
    """Whether rows of one batch, up to `length` tokens long, may stand at different positions behind one [`RaggedCache`]."""
    window = attention_window(base_causal_lm(model).config)
    if window is not None and length > window:
        return False
    return _remember(
        model,
        "ragged",
        _ragged_rows_are_off,
        "does not take a batch of rows at different positions ({reason}): rolling out one token at a time, in batches of "
        "prompts of equal length.",
    )


def takes_own_cache(model: nn.Module) -> bool:
    """Whether rows at one position come out right with the model's own cache, also where rows are dropped and repeated."""
    return _remember(
        model,
        "dense",
        _own_cache_is_off,
        "cannot continue a batch from its cache ({reason}): every step of a rollout reads the whole sequence again. The "
        "tokens are the same; it takes longer.",
    )


def _remember(model: nn.Module, name: str, probe: Callable[[nn.Module], str | None], message: str) -> bool:
    base = base_causal_lm(model)
    found = _found.setdefault(base, {})
    if name not in found:
        try:
            reason = probe(model)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Whatever a foreign architecture raises at an unusual cache means the same: it cannot take it.
            reason = f"{type(error).__name__}: {error}"
        found[name] = reason is None
        if reason is not None:
            logger.warning(f"{type(base).__name__} {message.format(reason=reason)}")
    return found[name]


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
    # session of as many rows before it has left behind in the modules.
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
    distance = ((found - expected).float().norm() / expected.float().norm()).item()
    if distance < agreement_tolerance(model, expected.dtype):
        return None
    return f"its hidden states came out {distance:.1e} off"
