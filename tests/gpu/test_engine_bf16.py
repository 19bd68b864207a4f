"""The transformers engine in bfloat16: the reference's tokens except for ties, each shown to be one."""

import contextlib
import copy

import pytest
import torch

from trl_exbias.core.modeling import without_attention_plans
from trl_exbias.rollouts import SamplingOptions, TransformersEngine

from ..reference import rollouts as reference
from ..rows import masks_for, random_rows
from ..tiny import VOCAB_SIZE, tiny_model
from .device import DEVICE, bf16_autocast, on_gpu_or_cpu
from .models import HAS_SMOLLM2, mid_policy, more_precise, smollm2
from .ties import Judge, assert_equal_but_for_ties, assert_every_token_was_drawn, is_ragged


OPTIONS = SamplingOptions(seed=5, max_new_tokens=12, stop_token_ids=tuple(range(0, VOCAB_SIZE, 9)))
GREEDY = SamplingOptions(temperature=0.0)


@pytest.fixture(autouse=True)
def _no_plans():
    """The references read a new shape with each token, as the engine does."""
    with without_attention_plans():
        yield


@pytest.fixture(scope="module")
def rows():
    return random_rows(on_gpu_or_cpu(11, 6))


def policy_and_judge(model, autocasts: bool):
    """A model in bfloat16, or one in float32 under mixed precision; and who judges its tokens."""
    if not autocasts:
        model = model.bfloat16()
        return model, contextlib.nullcontext, Judge(more_precise(model), lambda ids: model(ids).logits)

    def rounded(ids: torch.Tensor) -> torch.Tensor:
        with bf16_autocast():
            return model(ids).logits

    return model, bf16_autocast, Judge(copy.deepcopy(model), rounded)


@pytest.mark.quick_on_cpu
@pytest.mark.parametrize("autocasts", [False, True], ids=["weights", "autocast"])
@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "bloom"])
def test_tokens_are_the_references_but_for_ties(architecture, autocasts, rows, record):
    model, precision, judge = policy_and_judge(tiny_model(architecture).to(DEVICE), autocasts)
    masks, engine = masks_for(rows[1], 0.4), TransformersEngine(model, 0, autocast=precision)
    with precision():
        assert is_ragged(model, 60) == (architecture != "bloom")
        expected = {
            "mix": [reference.mix(model, *row, OPTIONS, i) for i, row in enumerate(zip(*rows, masks, strict=True))],
            "sample": [reference.sample(model, prompt, OPTIONS, i) for i, prompt in enumerate(rows[0])],
        }
        labels = [reference.label(model, *row) for row in zip(*rows, strict=True)]
    found = {"mix": engine.mix(*rows, masks, OPTIONS), "sample": engine.sample(rows[0], OPTIONS)}
    ties = {verb: assert_equal_but_for_ties(judge, found[verb], expected[verb], rows[0], OPTIONS) for verb in found}
    ties["label"] = assert_equal_but_for_ties(judge, engine.label(*rows), labels, rows[0], GREEDY, rows[1])
    record(ties=ties, rows=len(rows[0]), labels=sum(map(len, labels)))


def assert_larger(policy, precision, judge, record, longest: int) -> None:
    prompts, references = random_rows(on_gpu_or_cpu(32, 6), seed=1, longest=longest)
    masks, options = masks_for(references, 0.2), SamplingOptions(seed=9, max_new_tokens=on_gpu_or_cpu(64, 12))
    engine = TransformersEngine(policy, 0, autocast=precision)
    mixed, sampled = engine.mix(prompts, references, masks, options), engine.sample(prompts, options)
    with precision():
        assert is_ragged(policy, 2 * longest)
    record(
        drawn=sum(map(sum, masks)) + sum(map(len, sampled)),
        ties=assert_every_token_was_drawn(judge, prompts, mixed, masks, options)
        + assert_every_token_was_drawn(judge, prompts, sampled, None, options),
    )


@pytest.mark.parametrize("autocasts", [False, True], ids=["weights", "autocast"])
def test_every_token_of_a_larger_policy_is_what_its_prefix_gives_but_for_ties(autocasts, record):
    assert_larger(*policy_and_judge(mid_policy(), autocasts), record, longest=on_gpu_or_cpu(200, 30))


@pytest.mark.skipif(not HAS_SMOLLM2, reason="SmolLM2 is not there")
def test_every_token_of_smollm2_is_what_its_prefix_gives_but_for_ties(record):
    assert_larger(*policy_and_judge(smollm2(torch.bfloat16), False), record, longest=on_gpu_or_cpu(120, 20))
