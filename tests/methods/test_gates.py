"""Gated gold against its definition: BASH's by the policy that is shown the reference, DaD-DAgger's by its teacher."""

import re

import pytest
import torch

from trl_exbias import BASHConfig, BASHTrainer, DaDDaggerConfig, ScheduledSamplingConfig
from trl_exbias.core.branches import Branch
from trl_exbias.core.data import Example
from trl_exbias.core.joint_dataset import JointDataset
from trl_exbias.methods.rac_template import CorrectionTemplate
from trl_exbias.run.rollout_store import RolloutStore

from ..loop.runs import config, logged, trainer, weights
from ..reference import dad_dagger as reference_dad
from ..reference import losses as reference_losses
from ..tiny import conversations, plain_pairs, tiny_model
from .dad_dagger.runs import H, cut
from .dad_dagger.runs import run as run_dad


TEMPLATE = "{{ prompt }} (answer: {{ reference }})"
GATES = [{"gate": "threshold", "gate_epsilon": 0.02}, {"gate": "relative"}]
IDS = ["threshold", "relative"]


def weight(q: torch.Tensor, label: int, gate: str, gate_epsilon: float = 0.1) -> float:
    return min(1.0, (q[label] / gate_epsilon).item()) if gate == "threshold" else (q[label] / q.max()).item()


def run(tmp_path, dataset=None, **options) -> BASHTrainer:
    options = {"beta": 0.5, "sft_epochs": 0, "gate_template": TEMPLATE, "per_device_train_batch_size": 6, **options}
    done = trainer(BASHTrainer, config(BASHConfig, tmp_path, **options), dataset or conversations(6))
    done.train()
    return done


def stored(done) -> dict[int, dict]:
    rows = RolloutStore(f"{done.args.output_dir}/rollouts/iteration-1").read().to_list()
    return {row["example_id"]: row for row in rows}


@pytest.mark.parametrize("data", [conversations, plain_pairs])
@pytest.mark.parametrize("gate", GATES, ids=IDS)
def test_bashs_weights_and_loss_equal_the_reference(tmp_path, data, gate):
    done = run(tmp_path, data(6), learning_rate=0.0, **gate)
    model, template, made = tiny_model(), CorrectionTemplate(TEMPLATE), stored(done)
    rows, told = [], {"gate/gold": [], "gate/visited": []}
    for index, row in enumerate(done.train_dataset):
        example = Example.from_row(index, row)
        x, y, mixed = example.context_ids, example.response_ids, made[index]["input_ids"]
        shown = template.context_ids(row, done._tokenizer, done.inference_template)
        expected = []
        for j, label in enumerate(y):
            with torch.no_grad():
                q = model(torch.tensor([shown + mixed[:j]])).logits[0, -1].double().softmax(-1)
            is_visited = mixed[:j] != y[:j]
            told["gate/visited" if is_visited else "gate/gold"].append(weight(q, label, **gate))
            expected.append(told["gate/visited"][-1] if is_visited else 1.0)
        assert made[index]["token_weights"] == pytest.approx(expected, rel=1e-4)
        rows.append((x, y, mixed, expected))
    assert any(mixed != y for _, y, mixed, _ in rows)
    assert logged(done, "loss") == [pytest.approx(reference_losses.gated_bash(model, rows).item(), rel=1e-4)]
    for name, values in told.items():
        assert logged(done, name) == [pytest.approx(sum(values) / len(values), rel=1e-4)]
    assert 0 < logged(done, "gate/visited")[0] < 1


@pytest.mark.parametrize("gate", GATES, ids=IDS)
@pytest.mark.parametrize("cache", [True, False], ids=["kept", "live"])
def test_dad_daggers_weights_and_loss_equal_the_reference(tmp_path, gate, cache):
    """With a learning rate of 0 the student's rollouts are those of the start."""
    options = {"num_train_epochs": 1, "learning_rate": 0.0, "alpha": 0.75, "cache_teacher": cache}
    done = run_dad(tmp_path, **options, **gate)
    student, teacher = tiny_model(), tiny_model(seed=7)
    gold = reference_dad.gold_pairs(cut(), H, teacher)
    visited = reference_dad.rollout_pairs(cut(), H, student, teacher, done.args.seed, 2)
    values = {"gate/gold": [weight(p.soft, p.label, **gate) for p in gold]}
    values["gate/visited"] = [weight(p.soft, p.label, **gate) for p in visited]
    losses = []
    for pair, trust in zip([*gold, *visited], [1.0] * len(gold) + values["gate/visited"], strict=True):
        log_p = student(input_ids=torch.tensor([pair.context])).logits[0, -1].double().log_softmax(-1)
        losses.append(-0.75 * trust * log_p[pair.label] - 0.25 * (pair.soft * log_p).sum())
    assert logged(done, "loss")[1] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)
    for name, expected in values.items():
        assert logged(done, name)[-1] == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_a_gate_that_always_trusts_changes_nothing(tmp_path):
    open_gate = run(tmp_path / "open", gate="threshold", gate_epsilon=1e-30)
    none = run(tmp_path / "none")
    assert logged(open_gate, "gate/visited") == [1.0]
    assert torch.equal(weights(open_gate), weights(none))
    assert "token_weights" not in next(iter(stored(none).values()))


def test_weights_of_tokens_in_shared_and_in_separate_rows(tmp_path, monkeypatch):
    shared = run(tmp_path / "shared", gate="relative", num_train_epochs=2)
    monkeypatch.setattr("trl_exbias.loop.joint.check_shared_context", lambda model, **how: "a test")
    separate = run(tmp_path / "separate", gate="relative", num_train_epochs=2)
    assert logged(separate, "loss") == pytest.approx(logged(shared, "loss"), rel=1e-4)


def test_branches_with_and_without_weights_of_tokens_come_back_from_one_store(tmp_path):
    store = RolloutStore(tmp_path)
    store.begin({}, 2)
    plain, weighed = Branch("own", [1, 2], [1, 2], weight=0.5), Branch("own", [3], [3], weight=[0.25])
    store.write_shard(0, {0: [plain]}, {})
    store.write_shard(1, {1: [weighed], 2: [plain]}, {})
    store.finish()
    gold = JointDataset.__new__(JointDataset)
    from datasets import Dataset

    rows = Dataset.from_list([{"input_ids": [0], "labels": [0], "context_length": 1}] * 3)
    gold.__init__(rows, [store.read()])
    found = [Branch(**fields) for row in (gold[i] for i in range(3)) for fields in row["branches"]]
    assert found == [plain, weighed, plain]


def test_a_weight_is_needed_for_each_token():
    with pytest.raises(ValueError, match="got 1 weights for 2 tokens in a branch of kind 'own'"):
        Branch("own", [1, 2], [1, 2], weight=[1.0])


@pytest.mark.parametrize(
    ("config_class", "options", "message"),
    [
        (BASHConfig, {"gate": "soft"}, "`gate` must be one of threshold, relative, or None, got 'soft'"),
        (BASHConfig, {"gate_epsilon": 0}, "`gate_epsilon` must be in (0, 1], got 0"),
        (BASHConfig, {"gate": "relative", "gate_template": "{{ prompt }}"}, "`gate_template` (given as a string)"),
        (ScheduledSamplingConfig, {"gate": "relative"}, "`gate` is BASH's"),
        (DaDDaggerConfig, {"gate": "relative", "alpha": 1.0}, "and `alpha=1.0` has only one of the two"),
        (DaDDaggerConfig, {"gate": "relative", "teacher_top_k": 4}, "`gate` needs the whole distribution"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, config_class, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        config(config_class, tmp_path, **options)


def test_text_without_a_prompt_has_no_reference_to_show(tmp_path):
    from datasets import Dataset

    with pytest.raises(ValueError, match="`gate` shows the policy the reference: it needs prompt-completion"):
        run(tmp_path, Dataset.from_list([{"text": "The fox went out."}] * 4), gate="relative")
