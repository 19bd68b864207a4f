"""Responses on disk: made once, whatever happens in between."""

import json

import pytest
from peft import LoraConfig, get_peft_model

from trl_exbias.evaluation.generations import Generation, GenerationStore, generate
from trl_exbias.evaluation.identity import model_fingerprint, model_folder
from trl_exbias.rollouts import SamplingOptions, TransformersEngine

from ..tiny import byte_tokenizer, tiny_model


STOP = byte_tokenizer().eos_token_id
OPTIONS = SamplingOptions(temperature=1.0, max_new_tokens=6, stop_token_ids=(STOP,), seed=3)
PROMPTS = [[7, 8, 9], [10, 11], [12] * 7, [13, 14, 15, 16]]
SETTINGS = {"temperature": 1.0, "max_new_tokens": 6, "seed": 3}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def run(model, store, prompts=PROMPTS, num_generations=2, options=OPTIONS, width=2):
    """`generate` with batches of `width` rows; also how many rows each batch had."""
    sizes = []

    def make_engine(report):
        engine = TransformersEngine(model, STOP, on_progress=report)
        sample = engine.sample
        engine.sample = lambda rows, *rest: sizes.append(len(rows)) or sample(rows, *rest)
        return engine

    def batches(lengths):
        rows = list(range(len(lengths)))
        return [rows[start : start + width] for start in range(0, len(rows), width)]

    found, made = generate(store, prompts, num_generations, options, make_engine, str, batches)
    return found, made, sizes


def test_what_is_there_is_not_made_again(model, tmp_path):
    found, made, sizes = run(model, GenerationStore(tmp_path, "f" * 32, SETTINGS))
    assert sizes == [2, 2, 2, 2] and (made.generations, made.kept_generations) == (8, 0)
    assert made.generated_tokens == sum(len(one.tokens) + (not one.truncated) for row in found for one in row)
    again, made, sizes = run(model, GenerationStore(tmp_path, "f" * 32, SETTINGS), num_generations=3)
    assert sizes == [2, 2] and (made.generations, made.kept_generations) == (4, 8)
    assert [row[:2] for row in again] == found
    # Two draws for one prompt are two draws.
    assert all(len({tuple(one.tokens) for one in row}) > 1 for row in again)


def test_a_response_depends_on_nothing_but_its_key(model, tmp_path):
    all_of_them, _, _ = run(model, GenerationStore(tmp_path / "a", "f" * 32, SETTINGS))
    backwards, _, _ = run(model, GenerationStore(tmp_path / "b", "f" * 32, SETTINGS), PROMPTS[::-1][:3], width=3)
    assert backwards == all_of_them[::-1][:3]


def test_equal_prompts_share_a_response(model, tmp_path):
    found, made, _ = run(model, GenerationStore(tmp_path, "f" * 32, SETTINGS), [[7, 8], [7, 8]])
    assert found[0] == found[1] and made.generations == 2


@pytest.mark.parametrize(
    ("fingerprint", "settings"),
    [("0" * 32, SETTINGS), ("f" * 32, {**SETTINGS, "seed": 4}), ("f" * 32, {**SETTINGS, "temperature": 0.5})],
)
def test_another_model_seed_or_temperature_has_responses_of_its_own(tmp_path, fingerprint, settings):
    store = GenerationStore(tmp_path, "f" * 32, SETTINGS)
    with store:
        store.add([[1]], [0], [Generation([2], "x", True)])
    other = GenerationStore(tmp_path, fingerprint, settings)
    assert other.find([1], 0) is None and other.path != store.path
    assert GenerationStore(tmp_path, "f" * 32, SETTINGS).find([1], 0).text == "x"
    assert GenerationStore(tmp_path, "f" * 32, SETTINGS).find([1], 1) is None


def test_a_half_line_is_made_again_and_nothing_else(model, tmp_path):
    store = GenerationStore(tmp_path, "f" * 32, SETTINGS)
    before, _, _ = run(model, store)
    whole = store.path.read_bytes()
    for cut in (1, 30):
        store.path.write_bytes(whole[:-cut])
        after, made, _ = run(model, GenerationStore(tmp_path, "f" * 32, SETTINGS))
        assert after == before and made.generations == 1
        assert store.path.read_bytes() == whole
    store.path.write_bytes(whole[:20])  # in the middle of the settings
    after, made, _ = run(model, GenerationStore(tmp_path, "f" * 32, SETTINGS))
    assert after == before and made.generations == 8 and store.path.read_bytes() == whole


def test_a_damaged_line_is_named(model, tmp_path):
    store = GenerationStore(tmp_path, "f" * 32, SETTINGS)
    run(model, store)
    lines = store.path.read_bytes().split(b"\n")
    lines[3] = b"\0" * len(lines[3])
    store.path.write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match="damaged in line 4"):
        GenerationStore(tmp_path, "f" * 32, SETTINGS)


def test_two_evaluations_cannot_write_to_one_file(tmp_path):
    with (
        GenerationStore(tmp_path, "f" * 32, SETTINGS),
        pytest.raises(ValueError, match="Another evaluation is writing"),
        GenerationStore(tmp_path, "f" * 32, SETTINGS),
    ):
        pass


def test_truncation_is_told_from_an_end(tmp_path):
    """A model that always writes the stop token, and one that never does."""
    model = tiny_model()
    ends, _, _ = run(model, GenerationStore(tmp_path / "a", "f" * 32, {}), options=_only(range(300)))
    assert all(one.tokens == [] and not one.truncated for row in ends for one in row)
    never, _, _ = run(model, GenerationStore(tmp_path / "b", "f" * 32, {}), options=_only([]))
    assert all(len(one.tokens) == 6 and one.truncated for row in never for one in row)


def _only(stops):
    return SamplingOptions(max_new_tokens=6, stop_token_ids=tuple(stops))


def test_the_same_weights_elsewhere_are_the_same_model(tmp_path):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        tiny_model(seed=seed).save_pretrained(tmp_path / name)
    one, same, other = (model_fingerprint(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same != other
    config = json.loads((tmp_path / "same" / "config.json").read_text())
    (tmp_path / "same" / "config.json").write_text(json.dumps({**config, "transformers_version": "0"}))
    assert model_fingerprint(tmp_path / "same") == one
    (tmp_path / "same" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert model_fingerprint(tmp_path / "same") != one
    # A bit of the last weight.
    file = tmp_path / "one" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert model_fingerprint(tmp_path / "one") != one


def test_an_adapter_is_not_its_base_and_is_another_over_another_base(tmp_path):
    tiny_model(seed=0).save_pretrained(tmp_path / "base")
    base = type(tiny_model()).from_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    adapter = model_fingerprint(tmp_path / "adapter")
    assert adapter != model_fingerprint(tmp_path / "base")
    tiny_model(seed=1).save_pretrained(tmp_path / "base")
    assert model_fingerprint(tmp_path / "adapter") != adapter


def test_of_a_run_directory_the_newest_checkpoint_is_taken(tmp_path):
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert model_folder(str(tmp_path)).endswith("checkpoint-10")
    (tmp_path / "config.json").write_text("{}")
    assert model_folder(str(tmp_path)) == str(tmp_path)
    with pytest.raises(ValueError, match="no weights"):
        model_fingerprint(tmp_path)
