"""The transformers engine in float32, without TF32: every token is the reference's, in any batch and order."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from trl_exbias.rollouts import SamplingOptions, TransformersEngine

from ..reference import rollouts as reference
from ..rows import masks_for, random_rows
from ..tiny import VOCAB_SIZE, tiny_model
from .device import DEVICE, on_gpu_or_cpu
from .models import HAS_SMOLLM2, mid_policy, more_precise, smollm2, smollm2_rows
from .ties import Judge, assert_every_token_was_drawn, is_ragged


OPTIONS = SamplingOptions(seed=5, max_new_tokens=12, stop_token_ids=tuple(range(0, VOCAB_SIZE, 9)))
# GPT-Neo has attention of its own, BLOOM takes no mask of ours, the last one's window is cut: both are decoded.
MODELS = {
    "qwen2": {},
    "gemma2": {},
    "gpt2": {},
    "gpt_neo": {},
    "bloom": {},
    "mistral": {"sliding_window": 8},
}


@pytest.fixture(scope="module")
def rows():
    return random_rows(on_gpu_or_cpu(6, 5))


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return tiny_model(request.param, **MODELS[request.param]).to(DEVICE)


@pytest.mark.quick_on_cpu
def test_rows_at_different_positions_are_taken_wherever_the_architecture_can(model):
    name = model.config.model_type
    assert [is_ragged(model, length) for length in (8, 60)] == [name != "bloom", name not in ("bloom", "mistral")]


@pytest.mark.quick_on_cpu
def test_sample_equals_the_reference(model, rows):
    found = TransformersEngine(model, 0).sample(rows[0], OPTIONS)
    assert found == [reference.sample(model, prompt, OPTIONS, i) for i, prompt in enumerate(rows[0])]


@pytest.mark.quick_on_cpu
@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_mix_by_sweeps_equals_token_by_token(model, rows, beta):
    masks = masks_for(rows[1], beta)
    found = TransformersEngine(model, 0).mix(*rows, masks, OPTIONS)
    assert found == [reference.mix(model, *row, OPTIONS, i) for i, row in enumerate(zip(*rows, masks, strict=True))]
    assert found != rows[1]


@pytest.mark.quick_on_cpu
def test_label_equals_the_reference(model, rows):
    found = TransformersEngine(model, 0).label(*rows)
    assert found == [reference.label(model, *row) for row in zip(*rows, strict=True)]


@pytest.mark.quick_on_cpu
@pytest.mark.parametrize("budget", [1, 64])
def test_batch_size_and_order_change_nothing(model, rows, budget):
    masks = masks_for(rows[1], 0.3)
    whole, engine = TransformersEngine(model, 0), TransformersEngine(model, 0, max_batch_tokens=budget)
    order = torch.randperm(len(rows[0])).tolist()
    prompts, references, mixed = ([part[i] for i in order] for part in (*rows, masks))
    for found, expected in (
        (engine.sample(prompts, OPTIONS, order), whole.sample(rows[0], OPTIONS)),
        (engine.mix(prompts, references, mixed, OPTIONS, order), whole.mix(*rows, masks, OPTIONS)),
        (engine.label(prompts, references), whole.label(*rows)),
    ):
        assert found == [expected[i] for i in order]


@pytest.mark.quick_on_cpu
def test_a_lora_policy_and_eager_attention_equal_the_reference(rows):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    policy = get_peft_model(tiny_model(attn_implementation="eager"), lora).to(DEVICE).eval()
    masks = masks_for(rows[1], 0.5)
    found = TransformersEngine(policy, 0).mix(*rows, masks, OPTIONS)
    assert found == [reference.mix(policy, *row, OPTIONS, i) for i, row in enumerate(zip(*rows, masks, strict=True))]


def assert_larger(policy, prompts, references, options, pad: int, record) -> None:
    """Each verb against one pass over its result in float64: a tie is one within float32's rounding."""
    judge, engine = Judge(more_precise(policy), lambda ids: policy(ids).logits), TransformersEngine(policy, pad)
    assert is_ragged(policy, max(map(len, prompts)) + max(map(len, references)))
    masks, greedy = masks_for(references, 0.2), SamplingOptions(temperature=0.0)
    mixed, sampled = engine.mix(prompts, references, masks, options), engine.sample(prompts, options)
    assert mixed != references
    ties = assert_every_token_was_drawn(judge, prompts, mixed, masks, options)
    ties += assert_every_token_was_drawn(judge, prompts, sampled, None, options)
    labels = engine.label(prompts, references)
    for prompt, gold, row in zip(prompts, references, labels, strict=True):
        # A label is what greedy drawing of that position alone would give.
        for j in range(0, len(row), 61):
            drawn = [[False] * j + [True]]
            ties += assert_every_token_was_drawn(judge, [prompt], [gold[:j] + row[j : j + 1]], drawn, greedy)
    record(drawn=sum(map(sum, masks)) + sum(map(len, sampled)), ties=ties)


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_every_token_of_a_larger_policy_is_what_its_prefix_gives(family, record):
    """Windows, batches and a vocabulary of a real size."""
    rows = random_rows(on_gpu_or_cpu(32, 8), seed=1, longest=on_gpu_or_cpu(200, 30))
    options = SamplingOptions(seed=9, max_new_tokens=on_gpu_or_cpu(64, 12))
    assert_larger(mid_policy(family), *rows, options, 0, record)


@pytest.mark.skipif(not HAS_SMOLLM2, reason="SmolLM2 is not there")
def test_every_token_of_smollm2_is_what_its_prefix_gives(record):
    rows = smollm2_rows(on_gpu_or_cpu(16, 3))
    options = SamplingOptions(seed=2, max_new_tokens=on_gpu_or_cpu(24, 6), stop_token_ids=(2,))
    assert_larger(smollm2(torch.float32), *rows, options, 2, record)
