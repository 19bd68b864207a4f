"""What is planned for rollouts and labels against tensors that are counted as they come and go, on a CPU."""

import pytest
import torch
from packaging.version import Version

from trl_exbias.core.fingerprint import weights_fingerprint
from trl_exbias.core.modeling import LMHead, inference
from trl_exbias.core.reading import most_probable, read_along
from trl_exbias.core.upstream import can_lay_out_weights
from trl_exbias.planning.memory import standing
from trl_exbias.planning.model import meta_model, model_facts
from trl_exbias.planning.placement import Placement
from trl_exbias.planning.rollout_memory import laid_out, logits, reading, rollout_moments
from trl_exbias.rollouts import SamplingOptions
from trl_exbias.rollouts.sampling import Prefixes, choose_tokens

from ..gpu.memory import CountedMeter
from ..tiny import tiny_model


CPU = Placement(cpu=True)
VOCAB_SIZE, POSITIONS = 2000, 1500


def counted_peak(call) -> int:
    with CountedMeter() as meter:
        call()
        return meter.peak()


def facts_of(model):
    return model_facts(meta_model(model.config, torch.float32, CPU), torch.float32)


@pytest.fixture(scope="module")
def model():
    return tiny_model(vocab_size=VOCAB_SIZE)


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.9"),
    reason="torch 2.8 has no fused attention for keys shared by several heads on a CPU",
)
@torch.no_grad()
def test_a_forward_takes_what_reading_is_planned_to_take(model):
    rows, length = 16, 64
    ids = torch.randint(VOCAB_SIZE, (rows, length + 1)).tolist()
    found = counted_peak(lambda: read_along(model, [row[:8] for row in ids], [row[8:] for row in ids], 0))
    assert reading(facts_of(model), rows * length, CPU) == pytest.approx(found, rel=0.15)


def test_the_policys_identity_takes_five_integers_a_weight_of_its_largest_tensor(model):
    facts = facts_of(model)
    moment = rollout_moments(standing(facts, CPU, "sgd"), facts, CPU, batch_tokens=1)[0]
    assert moment.parts["activations"] == pytest.approx(counted_peak(lambda: weights_fingerprint(model)), rel=0.05)


@pytest.mark.parametrize(
    ("options", "on_gpu", "tiles"),
    [
        ({}, True, 5.0),
        ({}, False, 1.0),
        ({"top_p": 0.9}, False, 7.0),
        ({"temperature": 0.0}, False, 1.0),
        ({"repetition_penalty": 1.2}, False, 3.25),
    ],
    ids=["noise of a whole chunk", "noise in parts", "top-p", "greedy", "penalty"],
)
@torch.no_grad()
def test_drawing_takes_the_tiles_that_are_planned(model, options, on_gpu, tiles, monkeypatch):
    """A GPU makes the noise of a thousand rows at once, a CPU in small parts."""
    rows = 1 << 10 if on_gpu else 8
    monkeypatch.setattr("trl_exbias.rollouts.noise._CHUNK_ELEMENTS", rows * VOCAB_SIZE)
    hidden, positions = torch.randn(1 << 10, 32), list(range(1 << 10))
    keys = [0] * len(positions), positions
    prefixes = Prefixes({row: [1, 2, 3] for row in positions}, positions, [3] * len(positions))
    found = counted_peak(lambda: choose_tokens(LMHead(model), hidden, SamplingOptions(**options), *keys, prefixes))
    assert found == pytest.approx(logits(VOCAB_SIZE, len(positions), tiles), rel=0.05)


@torch.no_grad()
def test_half_precisions_product_stands_beside_the_float32_logits():
    head, hidden = LMHead(tiny_model(vocab_size=VOCAB_SIZE).bfloat16()), torch.randn(POSITIONS, 32).bfloat16()
    found = counted_peak(lambda: most_probable(head, hidden))
    assert found == pytest.approx(logits(VOCAB_SIZE, POSITIONS, 1.5), rel=0.05)


@pytest.mark.skipif(not can_lay_out_weights(), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("tied", [True, False])
def test_the_second_copy_of_the_weights_takes_what_is_planned(tied):
    model = tiny_model(vocab_size=512, hidden_size=256, intermediate_size=512, tie_word_embeddings=tied)
    with inference(model):
        model(torch.randint(512, (4, 128)))
        copies = [vars(module)["forward"].laid_out for module in model.modules() if "forward" in vars(module)]
        found = sum(copy.numel() * copy.element_size() for copy in copies)
    assert laid_out(facts_of(model), CPU) == found > 0
    assert laid_out(facts_of(model), Placement(cpu=True, mixed_precision="bf16")) == 0
