"""A model under evaluation, through either engine."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from trl_exbias.evaluation import EvaluationOptions
from trl_exbias.evaluation.loading import load_model
from trl_exbias.evaluation.subject import EvaluatedModel, Sampling

from ..marks import needs_vllm
from ..tiny import VOCAB_SIZE, byte_tokenizer, tiny_model


PROMPTS = [[7, 8, 9], [10, 11, 12, 13]]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A LoRA adapter that changes what its base says, with a trained norm that vLLM cannot serve together with a base."""
    folder = tmp_path_factory.mktemp("adapter")
    tiny_model("mistral", head_dim=32).save_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.5)
        if "norm.modules_to_save" in name:
            parameter.data.mul_(2)
    model.save_pretrained(folder / "adapter")
    byte_tokenizer().save_pretrained(folder / "adapter")
    byte_tokenizer().save_pretrained(folder / "base")
    return folder


def responses(folder, name, tmp_path, **options):
    asked = EvaluationOptions(suites=("rouge",), output=tmp_path, device="cpu", **options)
    subject = EvaluatedModel(name, str(folder / name), asked)
    try:
        return subject.generate(PROMPTS, Sampling(max_new_tokens=8)), subject.made
    finally:
        subject.close()


def test_an_adapter_has_its_own_responses(adapter, tmp_path):
    of_adapter, _ = responses(adapter, "adapter", tmp_path)
    of_base, made = responses(adapter, "base", tmp_path)
    assert of_adapter != of_base and made.generations == 2
    assert responses(adapter, "adapter", tmp_path)[0] == of_adapter


@needs_vllm
@pytest.mark.slow
def test_vllm_says_greedily_what_transformers_says_of_an_adapter_too(adapter, tmp_path):
    in_place, _ = responses(adapter, "adapter", tmp_path, dtype="float32")
    served, made = responses(adapter, "adapter", tmp_path, dtype="float32", engine="vllm")
    assert served == in_place and made.generations == 2


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    tiny_model().save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="bare holds no tokenizer"):
        EvaluatedModel("bare", str(tmp_path / "bare"), EvaluationOptions(suites=("rouge",)))


@pytest.mark.parametrize(
    "config",
    [
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["lm_head"], "trainable_token_indices": {"embed_tokens": [VOCAB_SIZE, VOCAB_SIZE + 1]}},
    ],
    ids=["saved whole", "the new rows"],
)
def test_an_adapter_that_has_learned_new_tokens_is_loaded_with_them(tmp_path, config):
    """As TRL trains one with a cloned chat template: logits are those that it had, also of the new tokens."""
    tiny_model(tie_word_embeddings=False).save_pretrained(tmp_path / "base")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|one|>", "<|two|>"])
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(len(tokenizer))
    trained = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], **config)).eval()
    torch.manual_seed(0)
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    trained.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    options = EvaluationOptions(suites=("rouge",), device="cpu", dtype="float32")
    loaded = load_model(tmp_path / "adapter", options)
    ids = torch.tensor([[7, VOCAB_SIZE, 8, VOCAB_SIZE + 1, 9]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, trained(ids).logits)
