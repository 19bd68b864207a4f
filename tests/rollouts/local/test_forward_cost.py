"""What a forward costs besides its tokens: measured, and without influence on what is drawn."""

import pytest
import torch

from trl_exbias.rollouts import SamplingOptions, TransformersEngine
from trl_exbias.rollouts.local import forward_cost
from trl_exbias.rollouts.local.forward_cost import forward_overhead_tokens, overhead_tokens

from ...tiny import VOCAB_SIZE, tiny_model


@pytest.mark.parametrize(
    ("overhead", "expected"),
    [(100, 128), (1000, 1024), (1400, 1024), (1500, 2048), (3, 16), (10**6, 16384)],
)
def test_a_linear_cost_is_found_as_the_nearest_power_of_two_within_bounds(overhead, expected):
    assert overhead_tokens(lambda tokens: 1e-6 * (overhead + tokens)) == expected


def test_noise_that_makes_a_long_forward_the_faster_one_is_no_error():
    assert overhead_tokens(lambda tokens: 1e-3 if tokens < 100 else 0.5e-3) == 16384


def test_a_cpu_is_not_measured(monkeypatch):
    monkeypatch.setattr(forward_cost, "_seconds", lambda *args: pytest.fail("measured"))
    assert forward_overhead_tokens(tiny_model()) == 64


def test_a_device_is_measured_once_for_a_model_of_a_size(monkeypatch):
    monkeypatch.setattr(forward_cost, "_CPU_TOKENS", None)
    monkeypatch.setattr(forward_cost, "model_device", lambda model: torch.device("meta"))
    monkeypatch.setattr(forward_cost, "_measured", {})
    calls = []
    monkeypatch.setattr(forward_cost, "_seconds", lambda *args: calls.append(args[-1]) or 1e-6 * (500 + args[-1]))
    assert forward_overhead_tokens(tiny_model()) == 512
    assert forward_overhead_tokens(tiny_model(seed=1)) == 512
    assert calls == [16, 16, 4096]


@pytest.mark.parametrize("positions", [8, 100, 256])
def test_a_model_of_few_positions_is_measured_within_them(positions, monkeypatch):
    model = tiny_model("gpt2", n_positions=positions)
    lengths = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    for tokens in (16, 4096):
        assert forward_cost._seconds(model, torch.device("cpu"), tokens) > 0
        assert lengths[-1].numel() == tokens and lengths[-1][1] <= positions


@pytest.mark.parametrize("overhead", [1, 16384])
def test_what_is_drawn_does_not_depend_on_it(overhead, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(VOCAB_SIZE, (n,), generator=generator).tolist() for n in (4, 9, 6)]
    gold = [torch.randint(VOCAB_SIZE, (n,), generator=generator).tolist() for n in (30, 12, 21)]
    masks = [[j % 3 == 0 for j in range(len(row))] for row in gold]
    model = tiny_model()
    expected = TransformersEngine(model, 0).mix(prompts, gold, masks, SamplingOptions(seed=1))
    monkeypatch.setattr("trl_exbias.rollouts.local.engine.forward_overhead_tokens", lambda model: overhead)
    assert TransformersEngine(model, 0).mix(prompts, gold, masks, SamplingOptions(seed=1)) == expected
