"""Whether MAUVE and generative perplexity tell real text from bad text: stories, with SmolLM2-135M as the measuring model."""

import json
import random
from pathlib import Path

import pytest
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from trl_exbias.demo.embedded_model import embedded_model
from trl_exbias.evaluation import paired_difference
from trl_exbias.evaluation.generative_perplexity import generative_cross_entropy
from trl_exbias.evaluation.mauve import mauve
from trl_exbias.evaluation.measuring_models import text_features


STORIES = Path(__file__).parents[3] / "shared" / "data" / "story_domains"
NUM_TEXTS, WORDS = 160, 32

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def texts():
    """Pieces of the same stories, those that come right after them, and the same made worse."""
    if not STORIES.is_dir():
        pytest.skip("../shared/data/story_domains is not here")
    pieces = []
    for line in (STORIES / "investigators.jsonl").read_text(encoding="utf-8").splitlines():
        words = json.loads(line)["text"].split()
        pieces += [words[i : i + WORDS] for i in range(0, len(words) - WORDS, WORDS)]
    step = len(pieces) // (2 * NUM_TEXTS)
    written = [pieces[2 * i * step] for i in range(NUM_TEXTS)]
    other = [pieces[(2 * i + 1) * step] for i in range(NUM_TEXTS)]
    shuffle = random.Random(0)
    return {
        "written": [" ".join(words) for words in written],
        "other": [" ".join(words) for words in other],
        "shuffled": [" ".join(shuffle.sample(words, len(words))) for words in other],
        "repeated": [" ".join((words[:4] * WORDS)[:WORDS]) for words in other],
    }


def test_mauve_is_high_for_written_text_and_low_for_shuffled_and_repeated_text(texts):
    pytest.importorskip("mauve")
    folder = embedded_model()
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = [str(i) for i in range(NUM_TEXTS)]
    features = {name: text_features(model, tokenizer, each, 128, 4096) for name, each in texts.items()}
    found = {name: mauve(ids, features["written"], features[name]) for name in texts if name != "written"}
    print({name: str(figure) for name, figure in found.items()})
    assert found["other"].mean > 0.8
    for name in ("shuffled", "repeated"):
        assert found[name].mean < 0.5 * found["other"].mean
        assert paired_difference(found["other"], found[name]).low > 0


def test_generative_perplexity_is_off_in_either_direction(texts):
    folder = embedded_model()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    named = {name: {str(i): text for i, text in enumerate(each)} for name, each in texts.items()}
    prompts = dict.fromkeys(named["written"], "")
    found = {
        name: generative_cross_entropy(model, tokenizer, prompts, named[name], named["written"], 4096)[
            "minus_reference"
        ]
        for name in ("other", "shuffled", "repeated")
    }
    print({name: str(figure) for name, figure in found.items()})
    assert found["other"].low < 0 < found["other"].high
    assert found["shuffled"].low > 1 and found["repeated"].high < -1
