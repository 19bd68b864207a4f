"""The engine, the layout and a whole run on a real language model: SmolLM2-135M-Instruct, float32."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.utils import add_fused_lm_head

from trl_exbias import BASHConfig, BASHTrainer
from trl_exbias.core.branches import GOLD, Branch, BranchedExample
from trl_exbias.core.collating import BranchCollator
from trl_exbias.core.layout import branch_attention_mask, check_shared_context
from trl_exbias.core.losses import sum_by_kind
from trl_exbias.demo.embedded_model import embedded_model
from trl_exbias.demo.word_problems import is_correct, word_problems
from trl_exbias.rollouts import SamplingOptions, TransformersEngine
from trl_exbias.rollouts.noise import uniform

from .loop.runs import config, logged
from .reference import rollouts as reference


@pytest.fixture(scope="module")
def folder():
    return embedded_model()


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def smollm2_tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def rows(smollm2_tokenizer):
    """Prompts and gold responses, ending in `<|im_end|>`."""
    problems = word_problems(4, seed=3)
    prompts = [
        smollm2_tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        for row in problems
    ]
    gold = [smollm2_tokenizer(row["completion"][0]["content"] + "<|im_end|>")["input_ids"] for row in problems]
    return prompts, gold


def test_the_embedded_model_ends_its_turns(folder, smollm2_tokenizer):
    assert smollm2_tokenizer.eos_token == "<|im_end|>"
    assert (folder / "model.safetensors").is_file()


def test_mix_equals_the_sequential_algorithm(model, rows):
    masks = [(uniform(1, [i], len(gold))[0] < 0.3).tolist() for i, gold in enumerate(rows[1])]
    options = SamplingOptions(seed=2)
    found = TransformersEngine(model, 2).mix(*rows, masks, options)
    expected = [reference.mix(model, *row, options, i) for i, row in enumerate(zip(*rows, masks, strict=True))]
    assert found == expected
    assert found != rows[1]


def test_sample_equals_the_reference(model, rows):
    options = SamplingOptions(seed=2, max_new_tokens=12, stop_token_ids=(2,))
    found = TransformersEngine(model, 2).sample(rows[0], options)
    assert found == [reference.sample(model, prompt, options, i) for i, prompt in enumerate(rows[0])]


def test_label_equals_the_argmax_of_the_logits(model, rows):
    found = TransformersEngine(model, 2).label(*rows)
    with torch.no_grad():
        for prompt, gold, labels in zip(*rows, found, strict=True):
            logits = model(torch.tensor([prompt + gold])).logits[0]
            assert labels == logits[len(prompt) - 1 : -1].argmax(-1).tolist()


def test_a_shared_context_has_the_losses_and_gradients_of_separate_rows(folder, rows):
    """To 1e-5 relative, through 30 layers in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert check_shared_context(model) is None
    add_fused_lm_head(model)
    collator = BranchCollator(lambda r: r, (GOLD, "mixed"), pad_token_id=2)
    examples = [
        BranchedExample(prompt, [-100] * len(prompt), [Branch(GOLD, gold, gold), Branch("mixed", gold[::-1], gold)])
        for prompt, gold in zip(*rows, strict=True)
    ][:2]
    results = []
    for shared in (True, False):
        collator.shared = shared
        batch = collator.collate(examples)
        mask = (
            branch_attention_mask(batch["segment_ids"], batch["example_ids"], batch["position_ids"], model.config)
            if shared
            else batch["attention_mask"]
        )
        positions = {"position_ids": batch["position_ids"]} if shared else {}
        output = model(
            input_ids=batch["input_ids"],
            attention_mask=mask,
            shift_labels=batch["shift_labels"],
            fused_lm_head=True,
            **positions,
        )
        sums = sum_by_kind(-output.log_probs, batch["branch_kinds"], 2)
        model.zero_grad()
        sums.sum().backward()
        results.append((sums.detach(), [p.grad.clone() for p in model.parameters()]))
    (shared_sums, shared_grads), (separate_sums, separate_grads) = results
    torch.testing.assert_close(shared_sums, separate_sums, rtol=1e-5, atol=0)
    distance = sum((a - b).pow(2).sum() for a, b in zip(shared_grads, separate_grads, strict=True)).sqrt()
    assert distance / sum(g.pow(2).sum() for g in separate_grads).sqrt() < 1e-5


def test_bash_trains_it(tmp_path, folder):
    args = config(BASHConfig, tmp_path, learning_rate=1e-4, max_length=256)
    trainer = BASHTrainer(model=str(folder), args=args, train_dataset=word_problems(8, seed=0))
    trainer.train()
    assert logged(trainer, "loss/mixed")[0] > logged(trainer, "loss/gold")[0] > 0
    assert logged(trainer, "loss/gold")[-1] < logged(trainer, "loss")[0]


def test_answers_are_verified_by_their_last_number():
    assert is_correct("6 * 7 = 42\n#### 42", 42)
    assert is_correct("It is 1,042.", 1042)
    assert not is_correct("It is 42, or 43?", 42)
    assert not is_correct("none", 0)


def test_word_problems_are_right_distinct_and_repeatable():
    problems = word_problems(200, seed=0)
    assert len({row["prompt"][0]["content"] for row in problems}) == 200
    assert all(is_correct(row["completion"][0]["content"], row["answer"]) for row in problems)
    assert problems.to_list() == word_problems(200, seed=0).to_list()
    assert problems.to_list() != word_problems(200, seed=1).to_list()
