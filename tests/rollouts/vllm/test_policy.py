"""Adapters as vLLM gets them: over their base, or merged into a copy that is exact, or refused before training."""

import pytest
import torch
from accelerate import Accelerator
from peft import FourierFTConfig, IA3Config, LoKrConfig, LoraConfig, OFTConfig, VeraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from trl_exbias import BASHConfig, BASHTrainer
from trl_exbias.core.merging import merged
from trl_exbias.evaluation.loading import load_model
from trl_exbias.methods.dad_dagger.students import keep_layers
from trl_exbias.rollouts.vllm.base_weights import differs_from_disk
from trl_exbias.rollouts.vllm.policy import check_servable, why_merge, write_policy

from ...families import family
from ...loop.runs import config, trainer
from ...marks import needs_vllm
from ...tiny import byte_tokenizer, conversations, tiny_model


def lora(**own) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **own})


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    tiny_model(tie_word_embeddings=request.param).save_pretrained(folder)
    return folder


def adapted(base, adapter):
    """A base with an adapter that has been trained."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 25).unsqueeze(0)).logits


TYING = "ensure_weight_tying"
MERGED = {
    "head": lora(modules_to_save=["lm_head"]),
    "embeddings": lora(modules_to_save=["embed_tokens"]),
    "both": lora(modules_to_save=["embed_tokens", "lm_head"]),
    "both-tied": lora(modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True),
    "norm": lora(modules_to_save=["norm"]),
    "adapted-embeddings": lora(target_modules=["q_proj", "embed_tokens"]),
    "single-tokens": lora(trainable_token_indices={"embed_tokens": [1, 2]}),
    "dora": lora(use_dora=True),
    "ranks": lora(rank_pattern={"q_proj": 4}, use_rslora=True),
    "bias": lora(bias="all"),
    "pissa": lora(init_lora_weights="pissa"),
    "experts": lora(target_modules=["q_proj"], target_parameters=["k_proj.weight"]),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
    "lokr": LoKrConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "oft": OFTConfig(target_modules=["q_proj"], oft_block_size=4, task_type="CAUSAL_LM"),
    "vera": VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("adapter", MERGED)
def test_a_merged_copy_has_the_policys_logits(adapter, base, tmp_path):
    model = adapted(base, MERGED[adapter])
    own = logits(model)
    check_servable(model)
    policy = write_policy(model, model, tmp_path / "served", Accelerator(cpu=True))
    assert policy.adapter is None, "over its base it would not be the policy"
    served = AutoModelForCausalLM.from_pretrained(policy.model, dtype=torch.float32).eval()
    assert (logits(served) - own).abs().max() < 1e-4
    assert torch.equal(logits(model), own), "the policy itself is not touched"


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        (lora(lora_bias=True), "Impossible to merge LoRA with `lora_bias=True`"),
        (lora(alora_invocation_tokens=[1, 2]), "aLoRA does not support merging"),
        (FourierFTConfig(n_frequency=10, target_modules=["q_proj"], task_type="CAUSAL_LM"), "`indices` outside"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(adapter, reason, base):
    with pytest.raises(ValueError, match=f"vLLM cannot serve this policy: .*{reason}.*`rollout_engine='transformers'`"):
        check_servable(adapted(base, adapter))


def test_a_multimodal_model_and_a_whole_quantized_one_are_refused():
    model = tiny_model()
    model.quantization_method = "bitsandbytes"
    with pytest.raises(ValueError, match="its base is quantized"):
        check_servable(model)


@needs_vllm
def test_it_is_refused_when_the_trainer_is_made(base, tmp_path):
    args = config(BASHConfig, tmp_path, rollout_engine="vllm")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with pytest.raises(ValueError, match="vLLM cannot serve this policy: it has `lora_bias`"):
        trainer(BASHTrainer, args, conversations(4), model, peft_config=lora(lora_bias=True))


def test_a_base_that_is_not_what_its_folder_holds_is_merged(base):
    def load():
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

    assert why_merge(get_peft_model(load(), lora())) is None
    assert why_merge(get_peft_model(load().to(torch.bfloat16), lora())) is None
    enlarged = load()
    enlarged.resize_token_embeddings(300)
    assert "of the base model is not what" in why_merge(get_peft_model(enlarged, lora()))
    earlier = merged(adapted(base, lora()))
    assert "down_proj" in why_merge(get_peft_model(earlier, lora()))


def test_a_base_without_some_of_its_layers_is_not_what_its_folder_holds(tmp_path):
    larger = tiny_model().config
    larger.num_hidden_layers, larger.layer_types = 4, ["full_attention"] * 4
    AutoModelForCausalLM.from_config(larger).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert differs_from_disk(model) is None
    assert differs_from_disk(keep_layers(model, 3)) == "the number of layers"


def test_an_adapter_that_is_evaluated_with_vllm_is_merged_alike(base, tmp_path):
    """With tied embeddings, of which one was trained."""
    from types import SimpleNamespace

    model = adapted(base, MERGED["head"])
    model.save_pretrained(tmp_path / "adapter")
    byte_tokenizer().save_pretrained(base)
    options = SimpleNamespace(dtype="float32", device="cpu", trust_remote_code=False)
    merged(load_model(tmp_path / "adapter", options)).save_pretrained(tmp_path / "merged")
    served = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert (logits(served) - logits(model)).abs().max() < 1e-4


def test_a_recurrent_policy_is_served_as_any_other(tmp_path):
    model = family("mamba")
    policy = write_policy(model, model, tmp_path / "served", Accelerator(cpu=True))
    served = AutoModelForCausalLM.from_pretrained(policy.model, dtype=torch.float32)
    assert torch.allclose(logits(served), logits(model), atol=1e-4)
