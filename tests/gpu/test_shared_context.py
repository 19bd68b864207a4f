"""Branches that share one context against branches in rows of their own: the same losses and gradients, as far as rounding goes.

Both layouts compute the same numbers, so in half precision neither is the truth: each is compared with float32 with the same
weights, and the shared one may be off by no more than separate rows are, give or take chance.
"""

import contextlib
import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from trl_exbias.core.layout import check_shared_context

from ..layouts import collator, gradients, random_examples
from .device import DEVICE, ON_CUDA, bf16_autocast, distance, on_gpu_or_cpu
from .models import HAS_SMOLLM2, mid_policy, smollm2


# Two roundings of a sum of thousands of terms are about as far off, each with a different luck.
LUCK = 2.0
VARIANTS = ["plain", "checkpointing", "LoRA", "LoRA, checkpointing"]


@pytest.fixture(scope="module")
def batches():
    """The same examples in each layout, a few of them long; packed ones are all in one row."""
    examples = random_examples(on_gpu_or_cpu(8, 4), context=on_gpu_or_cpu(200, 20), branch=on_gpu_or_cpu(150, 12))
    return {
        name: {key: value.to(DEVICE) for key, value in collator(shared=shared).collate(examples).items()}
        for name, shared in (("shared", True), ("separate", False))
    } | {
        "packed": {
            key: value.to(DEVICE) for key, value in collator().collate(examples, [[*range(len(examples))]]).items()
        }
    }


def prepared(model, variant: str):
    """In training mode, with TRL's fused LM head, as the trainers have it."""
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    if "LoRA" in variant:
        # As TRL has it: adapters in float32, whatever the base is in.
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False))
    if "checkpointing" in variant:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def losses_and_gradients(model, batches, precision=contextlib.nullcontext):
    with precision():
        return {name: gradients(model, batch) for name, batch in batches.items()}


@pytest.mark.quick_on_cpu
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_in_float32_losses_and_gradients_equal_separate_rows(variant, attention, batches):
    """Kernels may sum in another order for another mask: 2^-24 a term, in sums of up to 2^12 terms with luck on either side."""
    model = mid_policy()
    model.set_attn_implementation(attention)
    assert check_shared_context(model) is None
    found = losses_and_gradients(prepared(model, variant), batches)
    for layout in ("shared", "packed"):
        torch.testing.assert_close(found[layout][0], found["separate"][0], rtol=1e-5, atol=0)
        assert distance(found[layout][1], found["separate"][1]) < 1e-4


@pytest.mark.skipif(not ON_CUDA, reason="flex_attention has gradients on a GPU alone")
def test_flex_attention_equals_sdpa(batches):
    """Compiled, with the blocks left out that no token sees."""
    model = prepared(mid_policy(), "plain")
    expected = losses_and_gradients(model, batches)["separate"]
    model.set_attn_implementation("flex_attention")
    assert check_shared_context(model, packed=True) is None
    found = losses_and_gradients(model, {name: batches[name] for name in ("shared", "packed")})
    for losses, gradient in found.values():
        torch.testing.assert_close(losses, expected[0], rtol=1e-4, atol=0)
        assert distance(gradient, expected[1]) < 1e-3


@pytest.mark.quick_on_cpu
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("autocasts", [False, True], ids=["weights", "autocast"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_in_bfloat16_they_are_as_near_to_the_exact_ones_as_separate_rows(
    variant, autocasts, attention, batches, record
):
    model = mid_policy(dtype=torch.float32 if autocasts else torch.bfloat16)
    model.set_attn_implementation(attention)
    assert_as_near(model, variant, autocasts, batches, record)


@pytest.mark.skipif(not HAS_SMOLLM2, reason="SmolLM2 is not there")
@pytest.mark.parametrize("variant", ["plain", "LoRA, checkpointing"])
def test_smollm2_in_bfloat16(variant, batches, record):
    assert_as_near(smollm2(torch.bfloat16), variant, False, batches, record)


def assert_as_near(model, variant: str, autocasts: bool, batches, record) -> None:
    model = prepared(model, variant)
    found = losses_and_gradients(model, batches, bf16_autocast if autocasts else contextlib.nullcontext)
    losses, gradient = gradients(copy.deepcopy(model).float(), batches["separate"])
    off = {
        name: {"losses": distance(loss, losses), "gradient": distance(grad, gradient)}
        for name, (loss, grad) in found.items()
    }
    record(**off)
    # bfloat16 keeps 8 bits: 2^-9 is the rounding of one number, and a sum of many is off by less.
    for layout in ("shared", "packed"):
        assert off[layout]["losses"] < max(LUCK * off["separate"]["losses"], 2**-9)
        assert off[layout]["gradient"] < LUCK * off["separate"]["gradient"] + 2**-9
    assert off["separate"]["gradient"] < 0.1, "the exact ones are of the same weights"
