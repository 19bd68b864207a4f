"""A method that harms is found by what the model writes: random walks after BASH, where gold is one of several right ways."""

import pytest

from trl_exbias.bench.arms import ARMS, BY_NAME
from trl_exbias.bench.model import dataset_of, new_model, tokenizer_of
from trl_exbias.bench.tasks import TASKS
from trl_exbias.bench.training import train
from trl_exbias.evaluation.free_running import free_runs
from trl_exbias.evaluation.generative_perplexity import generative_cross_entropy
from trl_exbias.evaluation.mauve import mauve
from trl_exbias.evaluation.measuring_models import text_features
from trl_exbias.rollouts import SamplingOptions, TransformersEngine


pytestmark = pytest.mark.slow
TASK, HELD_OUT = TASKS["walk"], 300


@pytest.fixture(scope="module")
def models():
    """Trained on walks by SFT, the same after BASH, and a wider one that saw other walks."""
    data, tokenizer = dataset_of(TASK, TASK.make(2000, 1)), tokenizer_of(TASK)
    sft, _ = train(ARMS[0], lambda: new_model(TASK, 0), tokenizer, data, 25, 300_000, 0)
    weights = sft.state_dict()

    def start():
        model = new_model(TASK, 0)
        model.load_state_dict(weights)
        return model

    harmed, _ = train(BY_NAME["bash-1"], start, tokenizer, data, 25, 300_000, 0)
    other = dataset_of(TASK, TASK.make(4000, 2))
    scorer, _ = train(ARMS[0], lambda: new_model(TASK, 9, width=96), tokenizer, other, 25, 400_000, 9)
    return {"sft": start().eval(), "bash-1": harmed, "scorer": scorer}


def test_the_harmed_model_is_found_while_free_running_cross_entropy_praises_it(models):
    pytest.importorskip("mauve")
    tokenizer, rows = tokenizer_of(TASK), TASK.make(HELD_OUT, 5)
    prompts, length = rows.prompts.tolist(), rows.responses.size(1)
    ids = [str(i) for i in range(HELD_OUT)]
    scorer = models["scorer"]

    def text(tokens):
        return {key: tokenizer.decode(row) for key, row in zip(ids, tokens, strict=True)}

    contexts, references = text(prompts), text(rows.responses.tolist())
    features = text_features(scorer.transformer, tokenizer, list(references.values()), 64, 4096)
    found = {}
    for name in ("sft", "bash-1"):
        options = SamplingOptions(max_new_tokens=length, seed=0, excluded_token_ids=tuple(range(32, len(tokenizer))))
        written = text(TransformersEngine(models[name], 0).sample(prompts, options))
        entropies = generative_cross_entropy(scorer, tokenizer, contexts, written, references)
        alike = mauve(ids, features, text_features(scorer.transformer, tokenizer, list(written.values()), 64, 4096))
        free = free_runs(models[name], prompts, rows.responses.tolist(), 1, 0).free_running.mean()
        found[name] = {"minus_reference": entropies["minus_reference"], "mauve": alike, "free_running": free}
        print(name, {key: str(value) for key, value in found[name].items()})
    assert found["bash-1"]["free_running"] < 0.8 * found["sft"]["free_running"], "it praises"
    assert abs(found["sft"]["minus_reference"].mean) < 0.5 < 2 < found["bash-1"]["minus_reference"].low
    # The scorer's last state holds the last node alone, of which nothing is wrong: these features are blind to the harm.
    assert found["bash-1"]["mauve"].mean > 0.8
