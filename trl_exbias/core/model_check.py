"""Whether a model is what this package takes it for: a causal one, whose logits are what [`LMHead`] makes of its hidden states.

Found by trying it on a few tokens: architectures scale and cap their logits under names of their own, and a probability that is
computed otherwise than by the model itself is wrong without a sign.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .errors import UsageError
from .modeling import LMHead, backbone, base_causal_lm, inference, model_device, read_backbone
from .upstream import add_fused_head


_LENGTH = 8
#: Magnitudes of the largest raw logit at each position: from where any head is linear to far above every cap.
_MAGNITUDES = [4.0**k for k in range(_LENGTH)]
#: Relative distance above which a difference is not rounding in any type.
_TOLERANCE = 0.05
# What was found for each model: an architecture does not change in training.
_found: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()


def check_model(model: nn.Module) -> None:
    """
    Refuses a model whose probabilities this package would compute wrongly; remembers what it found.

    A few forwards of a few tokens, without gradient and without a random number. Where the model is sharded, every process has
    to call it.

    Raises:
        ValueError: names the model and what is different about it.
    """
    base = base_causal_lm(model)
    if base not in _found:
        _found[base] = _problem(model)
    if _found[base] is not None:
        raise UsageError(_found[base])


def check_training_head(model: nn.Module) -> None:
    """
    Refuses a model of which TRL's fused LM head, which computes the training loss, makes other log-probabilities than
    [`LMHead`], which [`check_model`] has compared with the model's own.

    Raises:
        ValueError: names the model.
    """
    name = type(base_causal_lm(model)).__name__
    with inference(model):
        tokens, hidden, factors = _magnified(model)
        targets = tokens.roll(-1, dims=1)
        own = LMHead(model)(hidden * factors)
        handle = backbone(model).register_forward_hook(lambda module, args, output: _multiply(output, factors))
        try:
            mask = torch.ones_like(tokens)
            fused = model(input_ids=tokens, attention_mask=mask, shift_labels=targets, fused_lm_head=True).log_probs
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            has_router = getattr(base_causal_lm(model).config.get_text_config(), "output_router_logits", False)
            remedy = " Without the load-balancing loss it may work: set `router_aux_loss_coef=0`." if has_router else ""
            raise UsageError(
                f"{name} cannot be trained: TRL's fused LM head fails on it ({type(error).__name__}: {error}).{remedy}"
            ) from error
        finally:
            handle.remove()
    expected = own.log_softmax(-1).gather(-1, targets.to(own.device).unsqueeze(-1))
    distance = _distance(fused.float().unsqueeze(-1), expected)
    if distance > _TOLERANCE:
        raise UsageError(
            f"{name} cannot be trained: TRL's fused LM head computes other log-probabilities than the model itself "
            f"({distance:.1e} off). A scale or a cap of its logits is not known there."
        )


def complete_fused_head(model: nn.Module) -> None:
    """Makes TRL's fused LM head, which a trainer has added already, treat logits as [`LMHead`] does."""
    base = base_causal_lm(model)
    if base.base_model is base:
        # Llama 4 and Mllama, of which the prefix names a part that they do not have: the fused head would call the model itself.
        names = (name for name, module in base.named_children() if module is backbone(base))
        base.base_model_prefix = next(names, base.base_model_prefix)
    config, softcap = base.config.get_text_config(), LMHead(model).softcap
    if softcap == getattr(config, "final_logit_softcapping", None):
        return

    config.final_logit_softcapping = softcap
    try:
        add_fused_head(base)
    finally:
        del config.final_logit_softcapping


def _problem(model: nn.Module) -> str | None:
    name = type(base_causal_lm(model)).__name__
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return (
            f"{model.active_peft_config.peft_type.value} adapters are not supported: their virtual tokens have no place in a "
            "row of tokens. Use LoRA."
        )
    with inference(model):
        return _reads_ahead(model, name) or _computes_other_logits(model, name)


def _reads_ahead(model: nn.Module, name: str) -> str | None:
    tokens = _tokens(model, 2)
    whole = read_backbone(model, input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    half = _LENGTH // 2
    changed = torch.cat([tokens[:, :half], tokens[:, half:].flip(0)], dim=1)
    mask = torch.ones_like(tokens)
    mask[1, half:] = 0
    # The first row continues with other tokens, the second with padding.
    other = read_backbone(model, input_ids=changed, attention_mask=mask, use_cache=False)
    expected, found = (output.last_hidden_state[:, :half].float() for output in (whole, other))
    # The median: where experts are chosen, rounding may choose another one for a token.
    distance = ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).median().item()
    if distance > _TOLERANCE:
        return (
            f"{name} is not a causal language model here: what it makes of a token depends on the tokens or the padding after "
            f"it (hidden states {distance:.1e} off). It cannot be rolled out, nor trained on padded batches."
        )
    return None


def _computes_other_logits(model: nn.Module, name: str) -> str | None:
    tokens, hidden, factors = _magnified(model)
    head = LMHead(model)
    projected = []

    def magnify(module: nn.Module, args: tuple) -> tuple:
        projected.append(args[0])
        return (args[0] * factors, *args[1:])

    handle = head.projection.register_forward_pre_hook(magnify)
    try:
        own = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits.float()
    finally:
        handle.remove()
    found = head(hidden * factors if projected else hidden)
    if own.shape != found.shape:
        return f"{name} is not supported: it gives {own.size(-1)} logits where its LM head has {found.size(-1)} rows."
    distance = _distance(found, own.to(found.device))
    if distance > _TOLERANCE:
        return (
            f"{name} is not supported: its logits are not what this package makes of its hidden states ({distance:.1e} off). It "
            "scales, caps or computes them in a way that is not known here, so that every probability would be wrong."
        )
    return None


def _tokens(model: nn.Module, rows: int) -> torch.Tensor:
    vocabulary = base_causal_lm(model).get_input_embeddings().num_embeddings
    tokens = torch.randint(vocabulary, (rows, _LENGTH), generator=torch.Generator().manual_seed(0))
    return tokens.to(model_device(model))


def _magnified(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Tokens, their last hidden states, and a factor for each that brings its largest raw logit to one of `_MAGNITUDES`: a cap
    bends only logits near it, and those that a model has by itself may be far below.
    """
    tokens = _tokens(model, 1)
    hidden = read_backbone(
        model, input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False
    ).last_hidden_state
    raw = LMHead(model).raw(hidden).float().abs().amax(-1, keepdim=True)
    wanted = torch.tensor(_MAGNITUDES, device=raw.device).unsqueeze(-1)
    # Powers of two, which no type rounds.
    factors = torch.exp2((wanted / raw).log2().round()).where(raw > 0, 1.0)
    return tokens, hidden, factors.to(hidden)


def _multiply(output: Any, factors: torch.Tensor) -> Any:
    """A backbone's output with other hidden states."""
    if isinstance(output, tuple):
        return (output[0] * factors, *output[1:])
    output["last_hidden_state"] = output["last_hidden_state"] * factors
    return output


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest relative distance at any position; 0 for a model that is not finite, which is found elsewhere."""
    if not torch.isfinite(expected).all():
        return 0.0
    distances = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-6)
    return distances.max().item()
