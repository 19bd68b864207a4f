"""The engine against its slow reference, token for token, and what it leaves."""

import itertools
import logging
import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from trl_exbias.rollouts import RolloutEngine, SamplingOptions, StopStrings, TransformersEngine
from trl_exbias.rollouts.local import engine as engine_module
from trl_exbias.rollouts.local import sessions

from ...reference import rollouts as reference
from ...rows import masks_for, random_rows
from ...tiny import VOCAB_SIZE, byte_tokenizer, tiny_model


ARCHITECTURES = ["qwen2", "mistral", "gemma2", "gpt2", "gpt_neo", "bloom"]
OPTIONS = SamplingOptions(seed=5, max_new_tokens=12, stop_token_ids=tuple(range(0, VOCAB_SIZE, 9)))


@pytest.fixture(scope="module")
def rows():
    return random_rows(11)


def test_it_is_a_rollout_engine():
    assert isinstance(TransformersEngine(tiny_model(), 0), RolloutEngine)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_sample_equals_the_reference(architecture, temperature, rows):
    model = tiny_model(architecture)
    options = SamplingOptions(seed=5, max_new_tokens=12, temperature=temperature, stop_token_ids=OPTIONS.stop_token_ids)
    found = TransformersEngine(model, 0).sample(rows[0], options)
    assert found == [reference.sample(model, prompt, options, i) for i, prompt in enumerate(rows[0])]
    assert temperature == 0 or len(set(map(len, found))) > 1, "rows that end at different lengths are what is tested"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_mix_equals_the_sequential_algorithm(architecture, beta, rows):
    model = tiny_model(architecture)
    masks = masks_for(rows[1], beta)
    found = TransformersEngine(model, 0).mix(*rows, masks, OPTIONS)
    expected = [reference.mix(model, *row, OPTIONS, i) for i, row in enumerate(zip(*rows, masks, strict=True))]
    assert found == expected
    assert found != rows[1]


@pytest.mark.parametrize("architecture", ["qwen2", "bloom"], ids=["rows at different positions", "rows alike"])
def test_a_repetition_penalty_sees_the_prompt_and_the_response_so_far(architecture, rows):
    """In a mix, it sees the mixed prefix: by windows of the guess, and token by token."""
    model, options, masks = tiny_model(architecture), replace(OPTIONS, repetition_penalty=0.4), masks_for(rows[1], 0.5)
    engine, plain = TransformersEngine(model, 0), replace(options, repetition_penalty=1.0)
    sampled, mixed = engine.sample(rows[0], options), engine.mix(*rows, masks, options)
    assert sampled == [reference.sample(model, prompt, options, i) for i, prompt in enumerate(rows[0])]
    assert mixed == [reference.mix(model, *row, options, i) for i, row in enumerate(zip(*rows, masks, strict=True))]
    assert sampled != engine.sample(rows[0], plain) and mixed != engine.mix(*rows, masks, plain)


def test_penalty_and_stop_strings_are_those_of_generate(rows):
    model, tokenizer = tiny_model(), byte_tokenizer()
    engine, greedy = TransformersEngine(model, 0), SamplingOptions(temperature=0, max_new_tokens=12)
    # For `generate`, not for us, a string may begin in the prompt: none has the prompts' last token.
    prompts = [[*prompt, *b"#"] for prompt in rows[0]]
    said = [tokenizer.decode(response) for response in engine.sample(prompts, replace(greedy, repetition_penalty=1.3))]
    strings = [text[k : k + 2] for k, text in enumerate(said[:6], start=2) if "#" not in text[k : k + 2]]
    options = replace(greedy, repetition_penalty=1.3, stop_strings=StopStrings(tokenizer, strings))
    found = engine.sample(prompts, options)
    for prompt, response in zip(prompts, found, strict=True):
        settings = {"do_sample": False, "max_new_tokens": 12, "repetition_penalty": 1.3, "pad_token_id": 0}
        whole = model.generate(torch.tensor([prompt]), stop_strings=strings, tokenizer=tokenizer, **settings)
        assert response == whole[0, len(prompt) :].tolist()
    assert len(set(map(len, found))) > 2, "rows that end at different lengths are what is tested"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_label_equals_the_reference(architecture, rows):
    model = tiny_model(architecture)
    found = TransformersEngine(model, 0).label(*rows)
    assert found == [reference.label(model, *row) for row in zip(*rows, strict=True)]


@pytest.mark.parametrize("architecture", ["qwen2", "bloom"], ids=["ragged", "own cache"])
def test_rows_that_have_ended_may_stand_idle_for_a_while(architecture, rows, monkeypatch):
    """As on a GPU, where dropping each row at once would copy the cache of all others at nearly every step."""
    model, drops = tiny_model(architecture), []
    engine = TransformersEngine(model, 0)
    for kind in (sessions.RaggedSession, sessions.DenseSession):
        keep = kind.keep
        monkeypatch.setattr(kind, "keep", lambda self, kept, keep=keep: drops.append(len(kept)) or keep(self, kept))
    prompts = [prompt[:1] for prompt in rows[0]]
    engine.sample(prompts[:2], OPTIONS)  # what the model can do is tried out once, with drops of its own
    found = {}
    for share in (0.0, 0.25):
        monkeypatch.setattr(sessions, "_IDLE_SHARE", {"cpu": share})
        drops.clear()
        found[share] = engine.sample(prompts, OPTIONS), [*drops]
    assert found[0.25][0] == found[0.0][0]
    assert 0 < len(found[0.25][1]) < len(found[0.0][1])


def test_mix_conditions_on_the_mixed_prefix_not_on_gold(rows):
    """Replacing every masked position from one pass over gold is another algorithm, and gives another result."""
    model = tiny_model()
    masks = masks_for(rows[1], 0.5)
    engine = TransformersEngine(model, 0)
    one_at_a_time = []
    for i, (prompt, gold, mask) in enumerate(zip(*rows, masks, strict=True)):
        two_pass = list(gold)
        for j in (j for j, drawn in enumerate(mask) if drawn):
            only_j = [k == j for k in range(len(gold))]
            two_pass[j] = engine.mix([prompt], [gold], [only_j], OPTIONS, [i])[0][j]
        one_at_a_time.append(two_pass)
    assert engine.mix(*rows, masks, OPTIONS) != one_at_a_time


@pytest.mark.parametrize("width", [(4,), (8,), (2048,)])
def test_the_window_width_changes_nothing(width, rows, monkeypatch):
    model, masks = tiny_model(), masks_for(rows[1], 0.4)
    expected = TransformersEngine(model, 0).mix(*rows, masks, OPTIONS)
    monkeypatch.setattr(engine_module, "_SWEEP_WIDTHS", width)
    assert TransformersEngine(model, 0).mix(*rows, masks, OPTIONS) == expected


@pytest.mark.parametrize("budget", [1, 64, 10_000])
def test_batch_size_and_order_change_nothing(budget, rows):
    model, masks = tiny_model(), masks_for(rows[1], 0.3)
    whole = TransformersEngine(model, 0)
    engine = TransformersEngine(model, 0, max_batch_tokens=budget)
    order = [7, 0, 10, 3, 5, 1, 9, 2, 8, 6, 4]
    prompts, references = ([part[i] for i in order] for part in rows)
    shuffled_masks = [masks[i] for i in order]
    for found, expected in (
        (engine.sample(prompts, OPTIONS, order), whole.sample(rows[0], OPTIONS)),
        (engine.mix(prompts, references, shuffled_masks, OPTIONS, order), whole.mix(*rows, masks, OPTIONS)),
        (engine.label(prompts, references), whole.label(*rows)),
    ):
        assert found == [expected[i] for i in order]


def test_free_running_mix_is_sample_at_gold_length(rows):
    """β = 1 ignores stop tokens; with none, `sample` of the same length draws the same tokens under the same noise."""
    model = tiny_model()
    engine = TransformersEngine(model, 0)
    references = [[0] * 10 for _ in rows[0]]
    free = engine.mix(rows[0], references, [[True] * 10] * len(references), OPTIONS)
    assert free == engine.sample(rows[0], SamplingOptions(seed=5, max_new_tokens=10))


def test_nothing_to_sample_returns_the_reference(rows):
    engine = TransformersEngine(tiny_model(), 0)
    assert engine.mix(*rows, masks_for(rows[1], 0.0), OPTIONS) == rows[1]


def test_mix_has_the_length_of_the_reference_even_after_a_stop_token(rows):
    mixed = TransformersEngine(tiny_model(), 0).mix(*rows, masks_for(rows[1], 1.0), OPTIONS)
    assert list(map(len, mixed)) == list(map(len, rows[1]))
    assert any(set(row[:-1]) & set(OPTIONS.stop_token_ids) for row in mixed)


def test_sample_keeps_the_stop_token_and_ends_there(rows):
    for response in TransformersEngine(tiny_model(), 0).sample(rows[0], OPTIONS):
        stops = [token in OPTIONS.stop_token_ids for token in response]
        assert not any(stops[:-1])
        assert stops[-1] or len(response) == OPTIONS.max_new_tokens


@pytest.mark.parametrize("verb", ["sample", "mix"])
def test_the_distribution_is_the_sequential_one(verb):
    """
    Three tokens of a vocabulary of 3, every sequence's probability by enumeration, 20,000 draws.

    From gold (2, 2, 2) with the middle position forced, `mix` has 9 outcomes. χ² with 26 (8) degrees of freedom: 54.1
    (26.1) is the 0.1 % point.
    """
    model = tiny_model(vocab_size=3)
    n, free = 20_000, (0, 1, 2) if verb == "sample" else (0, 2)
    engine = TransformersEngine(model, 0, max_batch_tokens=100_000)
    prompts = [[1, 0]] * n
    if verb == "sample":
        drawn = engine.sample(prompts, SamplingOptions(max_new_tokens=3))
    else:
        drawn = engine.mix(prompts, [[2, 2, 2]] * n, [[True, False, True]] * n, SamplingOptions())
    counts: dict[tuple[int, ...], int] = {}
    for row in drawn:
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    statistic = total = 0.0
    for outcome in itertools.product(range(3), repeat=3):
        if verb == "mix" and outcome[1] != 2:
            assert outcome not in counts
            continue
        with torch.no_grad():
            log_probs = model(torch.tensor([[1, 0, *outcome[:-1]]])).logits[0].double().log_softmax(-1)
        probability = math.exp(sum(log_probs[1 + j, outcome[j]].item() for j in free))
        total += probability
        statistic += (counts.get(outcome, 0) - n * probability) ** 2 / (n * probability)
    assert total == pytest.approx(1)
    assert statistic < (54.1 if verb == "sample" else 26.1)


def test_mixing_takes_fewer_forwards_than_tokens(monkeypatch):
    model = tiny_model()
    prompts, references = [[1, 2, 3]] * 8, [list(range(100))] * 8
    forwards = []
    model.model.register_forward_hook(lambda *_: forwards.append(1))
    TransformersEngine(model, 0).mix(prompts, references, masks_for(references, 0.05), OPTIONS)
    assert len(forwards) < 50


def test_labels_never_hold_more_logits_than_a_chunk(rows, monkeypatch):
    from trl_exbias.core import reading

    model = tiny_model()
    expected = TransformersEngine(model, 0).label(*rows)
    monkeypatch.setattr(reading, "_CHUNK_ELEMENTS", 7 * VOCAB_SIZE)
    sizes = []
    model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(output.numel()))
    assert TransformersEngine(model, 0).label(*rows) == expected
    assert len(sizes) > 10 and max(sizes) <= 7 * VOCAB_SIZE


def test_running_out_of_memory_halves_the_batch_and_changes_nothing(rows):
    model = tiny_model()
    expected = TransformersEngine(model, 0).sample(rows[0], OPTIONS)

    def run_out(module, args, kwargs):
        if kwargs["input_ids"].size(0) > 3:
            raise torch.OutOfMemoryError("no")

    model.model.register_forward_pre_hook(run_out, with_kwargs=True)
    progress = []
    engine = TransformersEngine(model, 0, on_progress=lambda rows, tokens: progress.append(rows))
    assert engine.sample(rows[0], OPTIONS) == expected
    assert sum(progress) == len(expected), "a row that ran twice is reported once"


def test_a_lora_policy_rolls_out_with_its_adapter(rows):
    model = tiny_model()
    before = TransformersEngine(model, 0).sample(rows[0], OPTIONS)
    lora = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    found = TransformersEngine(lora, 0).sample(rows[0], OPTIONS)
    assert found == [reference.sample(lora.eval(), prompt, OPTIONS, i) for i, prompt in enumerate(rows[0])]
    assert found != before


def test_eager_attention_gives_the_same_tokens(rows):
    model, masks = tiny_model(), masks_for(rows[1], 0.3)
    expected = TransformersEngine(model, 0).mix(*rows, masks, OPTIONS)
    model.set_attn_implementation("eager")
    assert TransformersEngine(model, 0).mix(*rows, masks, OPTIONS) == expected


def test_a_sequence_longer_than_the_attention_window_equals_the_reference():
    """Our mask has no window, so such a batch is decoded with the model's own cache."""
    model = tiny_model("mistral", sliding_window=8)
    prompts, references = [[3] * 6, [4] * 6, [5] * 3], [list(range(20))] * 3
    masks = masks_for(references, 0.5)
    found = TransformersEngine(model, 0).mix(prompts, references, masks, OPTIONS)
    rows = zip(prompts, references, masks, strict=True)
    assert found == [reference.mix(model, *row, OPTIONS, i) for i, row in enumerate(rows)]


def test_a_model_that_takes_no_mask_of_ours_says_so_once(rows, caplog):
    """BLOOM computes its position biases from the mask."""
    engine = TransformersEngine(tiny_model("bloom"), 0)
    with caplog.at_level(logging.WARNING):
        engine.sample(rows[0], OPTIONS)
        engine.sample(rows[0], OPTIONS)
    assert caplog.text.count("does not take a batch of rows at different positions") == 1


class TestTheModelIsLeftAsItWasFound:
    @pytest.fixture
    def model(self):
        model = tiny_model(attention_dropout=0.5)
        model.gradient_checkpointing_enable()
        model.train()
        model.model.norm.eval()  # a part that the user keeps in evaluation mode
        return model

    @staticmethod
    def state(model):
        return (
            [module.training for module in model.modules()],
            [parameter.requires_grad for parameter in model.parameters()],
            model.is_gradient_checkpointing,
            model.config._attn_implementation,
            torch.is_grad_enabled(),
            torch.get_rng_state().tolist(),
        )

    def test_after_every_verb(self, model, rows):
        before = self.state(model)
        engine = TransformersEngine(model, 0)
        engine.sample(rows[0], OPTIONS)
        engine.mix(*rows, masks_for(rows[1], 0.5), OPTIONS)
        engine.label(*rows)
        assert self.state(model) == before

    def test_after_an_exception(self, model, rows):
        before = self.state(model)

        def fail(*_):
            raise KeyError("mine")

        handle = model.model.layers[1].register_forward_hook(fail)
        with pytest.raises(KeyError, match="mine"):
            TransformersEngine(model, 0).label(*rows)
        handle.remove()
        assert self.state(model) == before

    def test_dropout_and_checkpointing_are_off_during_the_pass(self, model, rows):
        calm = tiny_model()
        assert TransformersEngine(model, 0).label(*rows) == TransformersEngine(calm, 0).label(*rows)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda engine: engine.sample([[1], []], OPTIONS), "Prompt 1 is empty"),
        (lambda engine: engine.sample([[1]], OPTIONS, [1, 2]), "same length, got lengths"),
        (lambda engine: engine.mix([[1]], [[1, 2]], [[True]], OPTIONS), "mask has 1 entries for a reference of 2"),
        (lambda engine: engine.label([[1]], []), "same length"),
    ],
)
def test_malformed_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(TransformersEngine(tiny_model(), 0))


def test_a_sequence_beyond_the_models_positions_is_refused():
    engine = TransformersEngine(tiny_model("gpt2"), 0)
    with pytest.raises(ValueError, match="262 tokens .* over the model's 256 positions"):
        engine.sample([[1] * 250], OPTIONS)
