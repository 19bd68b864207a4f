"""Whether the output of a model's frozen lower layers may be kept: found by trying it on a few tokens."""

import contextlib
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from .branches import GOLD
from .collating import BranchCollator
from .frozen_trunk import FrozenTrunk
from .layout import lay_out, trial_examples
from .modeling import (
    LMHead,
    agreement_tolerance,
    base_causal_lm,
    inference,
    model_device,
    read_backbone,
    relative_distance,
)
from .sharding import is_sharded
from .stand_ins import position_wise_parts


#: Relative distance of the same forward in training and in evaluation mode above which it is more than rounding.
_SAME = 1e-4
_PAD = 0
#: What a backbone reads of a batch.
_READ = ("input_ids", "position_ids", "segment_ids", "example_ids", "attention_mask")


def check_trunk(trunk: FrozenTrunk, shared: bool, packed: bool) -> str | None:
    """
    Says why the output of the frozen layers cannot be kept for training, `None` if it can; finds `trunk.position_wise`.

    Catches what no list of architectures would: dropout and noise in the embeddings, embeddings that are trained (also by a tied
    LM head), layers above that read more of those below than their output (Gemma 3n's keys and values), another shape.

    Args:
        shared, packed (`bool`): Which layouts training may use, as of [`BranchCollator`].
    """
    model = trunk.model
    if is_sharded(model):
        return "the model is spread over processes (ZeRO-3, FSDP2), each of which reads rows of its own"
    name, device = type(base_causal_lm(model)).__name__, model_device(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            reason = _trains_below(trunk) or _differs_in_training(trunk)
            if reason is None:
                trunk.position_wise = _position_wise(trunk)
                reason = _reads_differently(trunk, shared, packed)
            return reason
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Whatever a foreign architecture raises means the same: its layers cannot be left out.
            return f"{name} does not run without its {trunk.depth} frozen layers ({type(error).__name__}: {error})"


def _trains_below(trunk: FrozenTrunk) -> str | None:
    """Parameters that are trained and that the trunk's output depends on."""
    tokens = _tokens(trunk)
    with inference(trunk.model), torch.enable_grad():
        hidden = _output(trunk, tokens)
    if hidden.shape[:-1] != tokens.shape:
        return f"between its layers, the hidden states of {tuple(tokens.shape)} tokens are {tuple(hidden.shape)}"
    named = {name: parameter for name, parameter in trunk.model.named_parameters() if parameter.requires_grad}
    if not hidden.requires_grad or not named:
        return None
    gradients = torch.autograd.grad(hidden.sum(), [*named.values()], allow_unused=True)
    found = [name for name, gradient in zip(named, gradients, strict=True) if gradient is not None]
    return f"the frozen layers read what is trained ({', '.join(found[:3])})" if found else None


def _differs_in_training(trunk: FrozenTrunk) -> str | None:
    tokens = _tokens(trunk)
    with inference(trunk.model, own_attention=True):
        expected = _output(trunk, tokens)
    with torch.no_grad(), _training(trunk.model):
        found = _output(trunk, tokens)
    if relative_distance(found, expected) <= _SAME:
        return None
    return "in training, the frozen layers or the embeddings compute something else than in evaluation (dropout, noise)"


@torch.no_grad()
def _reads_differently(trunk: FrozenTrunk, shared: bool, packed: bool) -> str | None:
    """Compares last hidden states with those of a forward of all layers, in each layout."""
    model, device = trunk.model, model_device(trunk.model)
    examples = trial_examples(LMHead(model).vocab_size)
    rows = [row for example in examples for row in example.rows()]
    collator = BranchCollator(lambda rows: {}, (GOLD, "other"), pad_token_id=_PAD, with_states=True)
    with inference(model):
        read = trunk.read([tokens for tokens, _ in rows], _PAD)
        states = torch.cat([hidden[begin:] for hidden, (_, begin) in zip(read, rows, strict=True)])
        for collator.shared in {False, shared}:
            arranged = [[0, 1]] if collator.shared and packed else [[0], [1]]
            batch = collator.collate(examples, arranged)
            inputs = {name: batch[name].to(device) for name in _READ if name in batch}
            inputs = lay_out(inputs, model)
            expected = read_backbone(model, **inputs, use_cache=False).last_hidden_state
            scored = (batch["shift_labels"] != -100).to(device)
            with trunk.known(states[batch["state_ids"].to(states.device)], scored):
                found = read_backbone(model, **inputs, use_cache=False).last_hidden_state
            distance = relative_distance(found[scored], expected[scored])
            if distance > agreement_tolerance(model, expected.dtype):
                name = type(base_causal_lm(model)).__name__
                return f"{name} computes something else without its frozen layers (hidden states {distance:.1e} off)"
    return None


def _position_wise(trunk: FrozenTrunk) -> list[str]:
    """Parts of the last layer that may run at scored positions alone: in training mode, where dropout would draw others."""
    if trunk.depth == len(trunk.layers):
        return []
    tokens, tolerance = _tokens(trunk), agreement_tolerance(trunk.model, torch.float32)
    with torch.no_grad(), _training(trunk.model):
        read = partial(read_backbone, trunk.model, input_ids=tokens, attention_mask=torch.ones_like(tokens))
        return position_wise_parts(trunk.layers[-1], partial(read, use_cache=False), tolerance)


def _output(trunk: FrozenTrunk, tokens: torch.Tensor) -> torch.Tensor:
    with trunk.recorded() as outputs:
        read_backbone(trunk.model, input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    return outputs[0]


def _tokens(trunk: FrozenTrunk) -> torch.Tensor:
    (tokens, _), *_ = trial_examples(LMHead(trunk.model).vocab_size)[0].rows()
    return torch.tensor([tokens], device=model_device(trunk.model))


@contextlib.contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """The model as a training step has it, and afterwards as it was."""
    evaluating = [module for module in model.modules() if not module.training]
    try:
        model.train()
        yield
    finally:
        for module in evaluating:
            module.training = False
