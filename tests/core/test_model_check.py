"""That a model's logits are what the package makes of its hidden states, far above every cap, and who is refused."""

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import Qwen2ForCausalLM
from trl.trainer.utils import add_fused_lm_head

from trl_exbias import BASHConfig, BASHTrainer
from trl_exbias.core.likelihood import label_nll
from trl_exbias.core.model_check import check_model, check_training_head, complete_fused_head
from trl_exbias.core.modeling import LMHead, backbone, read_backbone
from trl_exbias.rollouts import SamplingOptions, TransformersEngine

from ..families import FINISHED, family
from ..loop.runs import config, trainer
from ..tiny import VOCAB_SIZE, conversations, tiny_model


class CappedQwen2(Qwen2ForCausalLM):
    """A cap that no configuration names, at 30: far above what the tiny model's logits are."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 30 * torch.tanh(output.logits / 30)
        return output


def capped() -> CappedQwen2:
    torch.manual_seed(0)
    return CappedQwen2(tiny_model().config).eval()


@pytest.mark.parametrize("name", FINISHED)
def test_logits_far_above_a_cap_are_the_models_own(name):
    model = family(name)
    check_model(model)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(150)
        tokens = torch.randint(VOCAB_SIZE, (2, 12), generator=torch.Generator().manual_seed(1))
        hidden = read_backbone(model, input_ids=tokens, use_cache=False).last_hidden_state
        own = model(input_ids=tokens, use_cache=False).logits.float()
        assert torch.allclose(LMHead(model)(hidden), own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["recurrent_gemma", "xlstm"])
def test_the_gradient_through_a_cap_is_autograds(name):
    head = LMHead(family(name))
    projected = (100 * torch.randn(3, VOCAB_SIZE)).requires_grad_()
    logits = head.finish(projected)
    grad = torch.randn_like(logits)
    logits.backward(grad)
    assert torch.allclose(projected.grad, head.finish_backward(grad, logits.detach()), atol=1e-6)


@pytest.mark.parametrize("name", FINISHED)
def test_trls_fused_head_is_completed_with_caps_that_it_does_not_know(name):
    model = family(name)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    if name in ("recurrent_gemma", "xlstm"):
        with pytest.raises(ValueError, match="TRL's fused LM head computes other log-probabilities"):
            check_training_head(model)
    complete_fused_head(model)
    check_training_head(model)
    assert "final_logit_softcapping" not in model.config.to_diff_dict() or name == "gemma2"


def test_a_cap_of_another_name_is_refused_although_no_logit_is_near_it(tmp_path):
    model = capped()
    with torch.no_grad():
        assert model(input_ids=torch.arange(9).unsqueeze(0)).logits.abs().max() < 3
    match = "CappedQwen2 is not supported: its logits are not what this package makes of its hidden states"
    for use in (
        lambda: TransformersEngine(model, 0).sample([[1, 2]], SamplingOptions(max_new_tokens=2)),
        lambda: label_nll(model, [[1, 2]], [[3]], [[3]], 0),
        lambda: trainer(BASHTrainer, config(BASHConfig, tmp_path), conversations(4), capped()),
    ):
        with pytest.raises(ValueError, match=match):
            use()


def test_a_model_that_sees_what_comes_after_is_refused():
    with pytest.raises(ValueError, match="Gemma3ForCausalLM is not a causal language model here"):
        check_model(family("bidirectional"))


def test_a_head_that_is_more_than_a_projection_is_refused():
    with pytest.raises(ValueError, match="BertLMHeadModel is not supported"):
        check_model(family("bert"))


def test_virtual_tokens_are_refused_wherever_a_model_is_read():
    prompted = get_peft_model(tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(ValueError, match="PROMPT_TUNING adapters are not supported"):
        label_nll(prompted, [[1, 2]], [[3]], [[3]], 0)


def test_a_head_of_zeros_is_no_reason_for_a_refusal():
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    check_model(model)


def test_a_check_leaves_no_trace():
    model = tiny_model(attention_dropout=0.5).train()
    before = torch.get_rng_state(), [module.training for module in model.modules()]
    check_model(model)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert [module.training for module in model.modules()] == before[1]
    assert not model.model._forward_hooks and not model.lm_head._forward_pre_hooks


def test_the_part_that_ends_in_hidden_states_is_found_without_its_prefix():
    model = family("llama4")
    assert model.base_model is model
    assert backbone(model) is model.model
    check_model(model)


def test_a_mixture_of_experts_that_trl_cannot_balance_is_told_what_to_set(tmp_path):
    args = config(BASHConfig, tmp_path, beta=0.3)
    with pytest.raises(ValueError, match="Without the load-balancing loss it may work: set `router_aux_loss_coef=0`"):
        trainer(BASHTrainer, args, conversations(4), family("llama4"))
    args = config(BASHConfig, tmp_path, beta=0.3, router_aux_loss_coef=0.0)
    done = trainer(BASHTrainer, args, conversations(4), family("llama4"))
    done.train()
    done.save_model(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").exists()
