"""Weights that are laid out once for a block without changes: the same products, and nothing remains of it."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from trl_exbias.core import laid_out_weights as layout
from trl_exbias.core.laid_out_weights import laid_out_weights
from trl_exbias.core.modeling import inference
from trl_exbias.core.upstream import can_lay_out_weights
from trl_exbias.rollouts import SamplingOptions, TransformersEngine


pytestmark = pytest.mark.skipif(not can_lay_out_weights(), reason="this build of torch has no oneDNN")
ROWS = 300  # above the threshold


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval()


def layer(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(256, 512, bias=bias)


def is_laid_out(module: nn.Module) -> bool:
    forward = vars(module).get("forward")
    return forward is not None and forward.laid_out is not None


@pytest.mark.parametrize("bias", [True, False])
def test_products_are_the_same(bias):
    linear, rows = layer(bias), torch.randn(2, ROWS, 256)
    with torch.no_grad():
        expected = linear(rows)
        with laid_out_weights(linear):
            found = linear(rows)
            assert is_laid_out(linear)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "rows",
    [
        torch.randn(256, 40).t(),
        torch.randn(4, 2, 512)[..., ::2],
        torch.randn(1, 10, 256).expand(3, 10, 256),
        torch.randn(256),
        torch.zeros(0, 3, 256),
    ],
    ids=["transposed", "strided", "expanded", "one row", "none"],
)
def test_rows_of_any_form(rows):
    linear = layer()
    with torch.no_grad(), laid_out_weights(linear):
        linear(torch.randn(ROWS, 256))
        assert is_laid_out(linear)
        found = linear(rows)
    torch.testing.assert_close(found, nn.functional.linear(rows, linear.weight, linear.bias), atol=1e-5, rtol=1e-5)


def test_a_model_reads_the_same_and_is_left_as_it_was():
    policy, ids = model(), torch.randint(512, (4, 128))
    with torch.no_grad():
        expected = policy(ids).logits
    with inference(policy):
        found = policy(ids).logits
        linear = [module for module in policy.modules() if isinstance(module, nn.Linear)]
        assert all(map(is_laid_out, linear)) and len(linear) == 2 * 7 + 1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not any("forward" in vars(module) for module in policy.modules())


def test_nothing_is_left_after_an_exception():
    linear = layer()
    with pytest.raises(RuntimeError, match="stop"), laid_out_weights(linear):
        raise RuntimeError("stop")
    assert "forward" not in vars(linear)


def test_blocks_within_blocks():
    linear, rows = layer(), torch.randn(ROWS, 256)
    with torch.no_grad(), laid_out_weights(linear):
        with laid_out_weights(linear):
            inner = linear(rows)
        assert is_laid_out(linear), "the outer block is not over"
        assert torch.equal(linear(rows), inner)


@pytest.mark.parametrize("change", ["in place", "another tensor"])
def test_changed_weights_are_laid_out_again(change):
    linear, rows = layer(), torch.randn(ROWS, 256)
    with torch.no_grad(), laid_out_weights(linear):
        before = linear(rows)
        if change == "in place":
            linear.weight.mul_(2)
        else:
            linear.weight.data = 2 * linear.weight.data
        after = linear(rows)
    torch.testing.assert_close(after - linear.bias, 2 * (before - linear.bias), atol=1e-4, rtol=1e-4)


def test_a_few_rows_are_not_worth_it():
    linear = layer()
    with torch.no_grad(), laid_out_weights(linear):
        for _ in range(16):
            rows = torch.randn(15, 256)
            assert torch.equal(linear(rows), nn.functional.linear(rows, linear.weight, linear.bias))
        assert not is_laid_out(linear)
        linear(torch.randn(ROWS, 256))
        assert is_laid_out(linear)


def test_gradients_and_mixed_precision_compute_as_always():
    linear, rows = layer(), torch.randn(ROWS, 256, requires_grad=True)
    expected = linear(rows)
    with laid_out_weights(linear):
        found = linear(rows)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            mixed = linear(rows)
        assert not is_laid_out(linear)
    assert torch.equal(found, expected) and found.grad_fn is not None
    assert mixed.dtype == torch.bfloat16


def test_only_plain_layers_of_some_size_in_float32():
    class Own(nn.Linear):
        """A layer with a product of its own, as quantized ones have."""

    small, half, own = nn.Linear(128, 128), nn.Linear(256, 512, dtype=torch.bfloat16), Own(256, 512)
    hooked = layer()
    hooked.forward = lambda input: input  # as accelerate's hooks do
    modules = nn.ModuleList([small, half, own, hooked])
    with laid_out_weights(modules):
        assert not any(hasattr(vars(module).get("forward"), "laid_out") for module in modules)
    assert hooked(1) == 1


def test_a_copy_that_does_not_fit_is_not_made(monkeypatch):
    monkeypatch.setattr(layout, "_LARGEST_SHARE", 0.0)
    linear = layer()
    with torch.no_grad(), laid_out_weights(linear):
        linear(torch.randn(ROWS, 256))
        assert "forward" not in vars(linear)


def test_under_an_adapter():
    policy = get_peft_model(model(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    ids = torch.randint(512, (4, 128))
    with torch.no_grad():
        expected = policy(ids).logits
        with laid_out_weights(policy):
            found = policy(ids).logits
            assert is_laid_out(policy.base_model.model.model.layers[0].self_attn.q_proj.base_layer)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_rollouts_draw_the_same_tokens(monkeypatch):
    prompts = [torch.randint(512, (5 + i,)).tolist() for i in range(16)]
    options = SamplingOptions(temperature=1.0, max_new_tokens=40, stop_token_ids=(), seed=3)
    engine = TransformersEngine(model(), pad_token_id=0)
    found = engine.sample(prompts, options)
    monkeypatch.setattr(layout, "can_lay_out_weights", lambda: False)
    assert engine.sample(prompts, options) == found
