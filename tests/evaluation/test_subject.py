"""A model under evaluation, through either engine."""

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from trl_exbias.evaluation import EvaluationOptions
from trl_exbias.evaluation.subject import Sampling, Subject

from ..marks import needs_vllm
from ..tiny import byte_tokenizer, tiny_model


PROMPTS = [[7, 8, 9], [10, 11, 12, 13]]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A LoRA adapter that changes what its base says, with a trained norm that vLLM cannot serve beside a base."""
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
    subject = Subject(name, str(folder / name), asked)
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
        Subject("bare", str(tmp_path / "bare"), EvaluationOptions(suites=("rouge",)))
