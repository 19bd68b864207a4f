"""Forwards that begin after the frozen layers against whole ones: the same losses and gradients in every layout."""

import re
from functools import partial

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from trl_exbias.core.branches import GOLD, Branch, BranchedExample
from trl_exbias.core.frozen_trunk import decoder_layers, find_trunk
from trl_exbias.core.modeling import inference
from trl_exbias.core.trunk_check import check_trunk

from ..families import family
from ..layouts import collator, gradients, random_examples
from ..tiny import tiny_model


GPT2 = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
#: Positions added to embeddings, scaled embeddings, layers of two types, ALiBi, recurrent layers, layers that hand on tuples; and
#: the layouts that each is tried in.
MODELS = {
    "qwen2": (lambda: tiny_model(num_hidden_layers=4), ("packed", "shared", "separate")),
    "gpt2": (lambda: tiny_model("gpt2", **GPT2), ("packed",)),
    "gpt_neo": (lambda: tiny_model("gpt_neo"), ("packed", "separate")),
    "gemma2": (lambda: tiny_model("gemma2"), ("packed",)),
    "bloom": (lambda: tiny_model("bloom"), ("separate",)),
    "recurrent_gemma": (lambda: family("recurrent_gemma"), ("separate",)),
    "qwen3_5": (lambda: family("qwen3_5"), ("separate",)),
}
CASES = [(make, layout) for make, layouts in MODELS.values() for layout in layouts]
IDS = [f"{name}-{layout}" for name, (_, layouts) in MODELS.items() for layout in layouts]


def freeze_below(model, layers: int = 1):
    """Trains the last layers and what comes after them."""
    model.requires_grad_(False)
    for layer in decoder_layers(model)[-layers:]:
        layer.requires_grad_(True)
    return model


def examples() -> list[BranchedExample]:
    """Among them one whose branches' contexts differ, one without a gold response, and one whose contexts share nothing."""
    differing = BranchedExample(
        [5, 6, 7], [-100, 6, 7], [Branch(GOLD, [8, 9], [8, 9]), Branch("own", [3], [3])], ([1], [1]), [2, 4]
    )
    cut_off = BranchedExample([5, 6, 7], [-100, 6, 7], [Branch(GOLD, [], []), Branch("own", [3, 4], [3, 4])])
    apart = BranchedExample(
        [], [], [Branch(GOLD, [8, 9], [8, 9]), Branch("own", [3], [3])], ([1, 2], [-100, 2]), [2, 4]
    )
    return [*random_examples(2), differing, cut_off, apart]


def kept_states(trunk, batch: list[BranchedExample]) -> torch.Tensor:
    rows = [row for example in batch for row in example.rows()]
    with inference(trunk.model):
        read = trunk.read([tokens for tokens, _ in rows], pad_token_id=0)
    return torch.cat([states[begin:] for states, (_, begin) in zip(read, rows, strict=True)])


@pytest.mark.parametrize(("make", "layout"), CASES, ids=IDS)
def test_losses_and_gradients_are_those_of_a_whole_forward(make, layout):
    """To 1e-5 relative, in float32."""
    model = freeze_below(make())
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    trunk, batch = find_trunk(model), examples()
    assert trunk.depth == len(trunk.layers) - 1
    assert check_trunk(trunk, shared=layout != "separate", packed=layout == "packed") is None
    options = {"shared": layout != "separate", "packed": layout == "packed", "with_states": True, "break_even": 1e6}
    collated = collator(**options).collate(batch)
    assert (len(collated["input_ids"]) < len(batch)) == (layout == "packed")
    losses, gradient = gradients(model, collated)
    states = kept_states(trunk, batch)
    assert len(states) == sum(example.num_states for example in batch)
    for scored in (None, collated["shift_labels"] != -100):
        known = partial(trunk.known, states[collated["state_ids"]], scored)
        trunk_free, found = gradients(model, collated, known)
        torch.testing.assert_close(trunk_free, losses, rtol=1e-5, atol=0)
        assert (found - gradient).norm() < 1e-5 * gradient.norm()
    assert all(type(layer).__name__ != "StandIn" for layer in trunk.layers)


def test_the_frozen_layers_do_not_run():
    model = freeze_below(tiny_model(num_hidden_layers=4), layers=2)
    trunk, tokens = find_trunk(model), torch.tensor([[1, 2, 3]])
    (states,) = trunk.read([[1, 2, 3]], pad_token_id=0)
    calls = []
    for i, layer in enumerate(trunk.layers):
        layer.register_forward_hook(lambda *_, i=i: calls.append(i))
    with trunk.known(states.unsqueeze(0)):
        model(input_ids=tokens)
    assert calls == [2, 3]
    calls.clear()
    trunk.read([[1, 2, 3]], pad_token_id=0)
    assert calls == [0, 1]


def test_the_feed_forward_part_runs_at_scored_positions_alone():
    model = freeze_below(tiny_model())
    trunk = find_trunk(model)
    assert check_trunk(trunk, shared=True, packed=True) is None and trunk.position_wise == ["mlp"]
    read = []
    trunk.layers[1].mlp.register_forward_hook(lambda module, args, output: read.append(args[0].shape))
    states, scored = torch.randn(2, 5, 32), torch.zeros(2, 5, dtype=torch.bool)
    scored[0, 3:] = scored[1, 4] = True
    for checkpoints in (False, True):
        if checkpoints:
            model.train().gradient_checkpointing_enable()
        with trunk.known(states, scored):
            last_hidden = model.model(input_ids=torch.zeros(2, 5, dtype=torch.long)).last_hidden_state
        last_hidden[scored].sum().backward()
        assert read == [(1, 3, 32)], "nor is it run again"
        read.clear()
    assert trunk.layers[1].gradient_checkpointing


def test_a_part_with_dropout_runs_at_every_position():
    """It would draw other random numbers than without the kept states."""
    model = freeze_below(tiny_model("gpt2", **GPT2))
    trunk = find_trunk(model)
    model.transformer.h[1].mlp.dropout.p = 0.1
    assert check_trunk(trunk, shared=True, packed=True) is None and trunk.position_wise == []


def test_the_layers_are_back_after_an_exception():
    trunk = find_trunk(freeze_below(tiny_model()))
    before = [*trunk.layers]
    with pytest.raises(RuntimeError, match="in between"), trunk.known(torch.zeros(1, 1, 32)):
        raise RuntimeError("in between")
    assert [*trunk.layers] == before


def test_a_norm_or_a_head_alone_is_trained_from_the_last_layers_output():
    model = tiny_model().requires_grad_(False)
    model.lm_head.requires_grad_(True)
    trunk = find_trunk(model)
    assert trunk.depth == len(trunk.layers) and check_trunk(trunk, shared=True, packed=True) is None


def test_a_model_whose_first_layer_is_trained_has_no_trunk():
    assert find_trunk(tiny_model()) is None


def trained(architecture="qwen2", *names, **config):
    """A model that trains its last layer and some parameters more."""
    model = freeze_below(tiny_model(architecture, **config))
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(True)
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: trained("gpt2"), r"something else than in evaluation \(dropout, noise\)"),
        (lambda: trained("qwen2", "model.embed_tokens.weight"), r"read what is trained \(model.embed_tokens.weight\)"),
        (lambda: trained("gpt2", "transformer.wpe.weight", **GPT2), r"read what is trained \(transformer.wpe.weight\)"),
        (
            lambda: trained("qwen2", "model.embed_tokens.weight", tie_word_embeddings=True),
            r"read what is trained \(model.embed_tokens.weight\)",
        ),
        (lambda: freeze_below(family("gemma3n")), r"hidden states of \(1, 5\) tokens are \(2, 1, 5, 32\)"),
        (lambda: freeze_below(family("gemma4")), "does not run without its 3 frozen layers"),
        (lambda: freeze_below(family("bidirectional")), "computes something else without its frozen layers"),
    ],
    ids=["dropout", "embeddings", "positions", "tied", "shape", "shared-keys", "reads-ahead"],
)
def test_what_is_in_the_way_is_found_by_trying(make, reason):
    model = make()
    state, training = torch.random.get_rng_state(), [module.training for module in model.modules()]
    assert re.search(reason, check_trunk(find_trunk(model), shared=True, packed=True))
    assert torch.equal(torch.random.get_rng_state(), state), "a run's random numbers are as without the trial"
    assert [module.training for module in model.modules()] == training


def test_gradients_asked_of_the_embeddings_are_no_training_of_them():
    """PEFT with gradient checkpointing: no parameter below, but a graph."""
    model = trained()
    model.enable_input_require_grads()
    assert check_trunk(find_trunk(model), shared=True, packed=True) is None


def test_the_fingerprint_is_of_what_the_output_depends_on():
    def fingerprint(change=lambda model: None, **config):
        model = trained(**config)
        change(model)
        return find_trunk(model).fingerprint()

    first = fingerprint()
    assert fingerprint(lambda model: model.model.layers[1].mlp.up_proj.weight.data.add_(1)) == first
    assert fingerprint(lambda model: model.model.layers[0].mlp.up_proj.weight.data.add_(1)) != first
    assert fingerprint(lambda model: model.model.embed_tokens.weight.data.add_(1)) != first
    assert fingerprint(rms_norm_eps=1e-3) != first
