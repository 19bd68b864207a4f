"""Where batches change their shape, cuDNN would plan attention again for each: it is kept out there, and only there."""

import pytest
import torch

from trl_exbias import BASHConfig, BASHTrainer
from trl_exbias.core.modeling import inference, without_attention_plans
from trl_exbias.rollouts import SamplingOptions, TransformersEngine

from ..tiny import conversations, tiny_model
from .runs import config, trainer


@pytest.fixture
def allowed(monkeypatch):
    """Whether cuDNN might have been taken, at each call of attention; it might before and after the test."""
    found, attend = [], torch.nn.functional.scaled_dot_product_attention

    def watched(*args, **kwargs):
        found.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attend(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    assert torch.backends.cuda.cudnn_sdp_enabled()
    yield found
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_rollouts_do_without_it(allowed):
    engine = TransformersEngine(tiny_model(), 0)
    engine.sample([[1, 2, 3]], SamplingOptions(max_new_tokens=3))
    engine.mix([[1, 2, 3]], [[4, 5, 6]], [[True, False, True]], SamplingOptions())
    engine.label([[1, 2, 3]], [[4, 5, 6]])
    assert allowed and not any(allowed)


def test_what_was_set_comes_back_also_from_an_exception(allowed):
    model = tiny_model()
    with pytest.raises(KeyError), inference(model):
        raise KeyError
    assert torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with without_attention_plans(), inference(model):
            pass
        assert not torch.backends.cuda.cudnn_sdp_enabled(), "the user has switched it off"
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_joint_steps_do_without_it_and_plain_sft_is_left_alone(tmp_path, allowed, checkpointing):
    by_step, in_backward = {}, {}

    class Watched(BASHTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            is_joint = "branch_kinds" in inputs
            weight = self.model.get_input_embeddings().weight
            handle = weight.register_hook(
                lambda _: in_backward.update({is_joint: torch.backends.cuda.cudnn_sdp_enabled()})
            )
            allowed.clear()
            loss = super().training_step(model, inputs, num_items_in_batch)
            handle.remove()
            by_step[is_joint] = [*allowed]
            return loss

    args = config(BASHConfig, tmp_path, beta=0.5, gradient_checkpointing=checkpointing)
    made = trainer(Watched, args, conversations(4))
    made.train()
    # Gradient checkpointing computes every layer twice, the second time within the backward.
    calls = made.model.config.num_hidden_layers * (1 + checkpointing)
    assert by_step == {False: [True] * calls, True: [False] * calls}
    assert in_backward == {False: True, True: False}
