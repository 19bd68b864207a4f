"""RAC with soft labels against its equation: whose distribution, along what, and which divergence."""

import re
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from trl_exbias import RACConfig, RACTrainer
from trl_exbias.core.data import Example
from trl_exbias.methods.rac_template import CorrectionTemplate
from trl_exbias.run.rollout_store import RolloutStore

from ..loop.runs import config, logged, trainer, weights
from ..reference import losses as reference_losses
from ..tiny import VOCAB_SIZE, conversations, plain_pairs, tiny_model
from .test_spin import Snapshots


TEMPLATE = "{{ prompt }} (answer: {{ reference }})"


def run(tmp_path, dataset=None, model=None, callbacks=(), resume=None, **options) -> RACTrainer:
    peft_config = options.pop("peft_config", None)
    options = {"max_new_tokens": 6, "sft_epochs": 0, "soft_labels": True, "correction_template": TEMPLATE, **options}
    args = config(RACConfig, tmp_path, **{"per_device_train_batch_size": 6, "learning_rate": 3e-3, **options})
    done = trainer(
        RACTrainer, args, dataset or conversations(6), model, peft_config=peft_config, callbacks=[*callbacks]
    )
    done.train(resume_from_checkpoint=resume)
    return done


def rows(done, iteration: int = 1) -> list[tuple]:
    """(x, y, f(x, y), z) of every row; z is empty where a row was not rolled out."""
    stored = RolloutStore(f"{done.args.output_dir}/rollouts/iteration-{iteration}").read().to_list()
    made = {row["example_id"]: row["input_ids"] for row in stored}
    template, found = CorrectionTemplate(TEMPLATE), []
    for index, row in enumerate(done.train_dataset):
        example = Example.from_row(index, row)
        shown = template.context_ids(row, done._tokenizer, done.inference_template)
        found.append((example.context_ids, example.response_ids, shown, made.get(index, [])))
    return found


@pytest.mark.parametrize("data", [conversations, plain_pairs])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"divergence": "reverse_kl"},
        {"divergence": "jensen_shannon", "jsd_beta": 0.2},
        {"teacher_top_k": VOCAB_SIZE, "divergence": "reverse_kl"},
    ],
    ids=["forward", "reverse", "js", "top-k"],
)
def test_losses_and_gradients_equal_the_reference(tmp_path, data, options):
    """Three steps: the labels stay those of the policy that rolled out, whatever training does to it and to its head."""
    snapshots = Snapshots()
    done = run(tmp_path, data(6), callbacks=[snapshots], num_train_epochs=3, max_grad_norm=1e9, **options)
    first = snapshots.models[0]
    which = options.get("divergence", "forward_kl"), options.get("jsd_beta", 0.5)
    for step, model in enumerate(snapshots.models):
        loss, kl = reference_losses.soft_rac(model, first, rows(done), *which)
        assert logged(done, "loss")[step] == pytest.approx(loss.item(), rel=1e-4)
        assert logged(done, "kl")[step] == pytest.approx(kl.item(), rel=1e-3)
        model.zero_grad()
        loss.backward()
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        assert logged(done, "grad_norm")[step] == pytest.approx(torch.stack(norms).norm().item(), rel=1e-3)
    assert logged(done, "rac/correction_rate")[0] > 0
    assert logged(done, "teacher/num_tokens") == [sum(len(shown) + len(z) for _, _, shown, z in rows(done))]


def test_hard_labels_are_the_most_probable_tokens_of_the_soft_ones(tmp_path):
    soft, hard = run(tmp_path / "soft"), run(tmp_path / "hard", soft_labels=False)
    a, b = (RolloutStore(tmp_path / name / "rollouts" / "iteration-1").read().to_list() for name in ("soft", "hard"))
    for one, other in zip(a, b, strict=True):
        assert one["input_ids"] == other["input_ids"]
        assert all(y in (x, -100) for x, y in zip(one["labels"], other["labels"], strict=True))
        assert -100 not in one["labels"]
    assert logged(soft, "rac/correction_rate") == logged(hard, "rac/correction_rate")


def test_the_loss_is_one_mean_of_the_global_batch_and_rows_without_an_answer_have_none(tmp_path):
    """Three of six rows were rolled out: batches of one have labels or not."""
    options = {"num_rollouts": 3, "divergence": "reverse_kl", "num_train_epochs": 2}
    whole = run(tmp_path / "whole", **options)
    parts = run(tmp_path / "parts", per_device_train_batch_size=1, gradient_accumulation_steps=6, **options)
    for key in ("loss", "loss/gold", "loss/own", "kl", "entropy"):
        assert logged(parts, key) == pytest.approx(logged(whole, key), rel=1e-4, abs=1e-5), key
    assert (weights(parts) - weights(whole)).norm() < 1e-4 * weights(whole).norm()


@pytest.mark.parametrize("kind", ["base", "average"])
def test_another_self_teacher(tmp_path, kind):
    """In the second iteration the policy is another one than at the start."""
    tiny_model().save_pretrained(tmp_path / "model")
    snapshots = Snapshots()
    options = {"self_teacher": kind} | ({"self_teacher_decay": 0.75} if kind == "average" else {})
    done = run(
        tmp_path / "run",
        model=str(tmp_path / "model"),
        callbacks=[snapshots],
        num_iterations=2,
        learning_rate=3e-2,
        **options,
    )
    first, second = snapshots.models
    teacher = first
    if kind == "average":
        teacher = tiny_model()
        with torch.no_grad():
            for average, one, other in zip(*(m.parameters() for m in (teacher, first, second)), strict=True):
                average.copy_(0.75 * one + 0.25 * other)
    loss, kl = reference_losses.soft_rac(second, teacher, rows(done, 2), "forward_kl")
    assert logged(done, "loss")[1] == pytest.approx(loss.item(), rel=1e-4)
    assert logged(done, "kl")[1] == pytest.approx(kl.item(), rel=1e-3)
    own = reference_losses.soft_rac(second, second, rows(done, 2), "forward_kl")[1].item()
    assert abs(own - kl.item()) > 0.1 * kl.item(), "the policy's own labels are others"


def test_the_base_of_an_adapter_is_the_model_without_it(tmp_path):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    done = run(
        tmp_path, peft_config=lora, self_teacher="base", num_iterations=2, learning_rate=5e-2, save_strategy="epoch"
    )
    second = PeftModel.from_pretrained(tiny_model(), tmp_path / "checkpoint-1").merge_and_unload()
    loss, _ = reference_losses.soft_rac(second, tiny_model(), rows(done, 2), "forward_kl")
    assert logged(done, "loss")[1] == pytest.approx(loss.item(), rel=1e-3)


@pytest.mark.parametrize("kind", ["policy", "base", "average"])
def test_a_resumed_run_ends_in_the_same_weights(tmp_path, kind):
    """From within an iteration, whose labels and whose head are on disk, and from before one."""
    tiny_model().save_pretrained(tmp_path / "model")
    options = {"num_iterations": 2, "num_train_epochs": 2, "save_strategy": "epoch", "self_teacher": kind}
    options["model"] = str(tmp_path / "model")
    whole = run(tmp_path / "whole", **options)
    for step in (2, 3):
        part = tmp_path / f"part-{step}"
        shutil.copytree(tmp_path / "whole", part)
        for later in range(step + 1, 5):
            shutil.rmtree(part / f"checkpoint-{later}")
        if step == 2:
            shutil.rmtree(part / "rollouts" / "iteration-2")
        resumed = run(part, resume=True, **options)
        assert torch.equal(weights(resumed), weights(whole))


def test_labels_that_are_gone_are_missed(tmp_path):
    options = {"num_train_epochs": 2, "save_strategy": "epoch"}
    run(tmp_path, **options)
    shutil.rmtree(tmp_path / "checkpoint-2")
    for path in (tmp_path / "rollouts" / "iteration-1" / "soft-labels").glob("shard-*"):
        path.unlink()
    with pytest.raises(ValueError, match="lacks the soft labels of row"):
        run(tmp_path, resume=True, **options)


def test_an_average_that_is_gone_is_missed(tmp_path):
    """It would begin again, from a policy that has been trained."""
    options = {"num_iterations": 2, "save_strategy": "epoch", "self_teacher": "average"}
    run(tmp_path, **options)
    for name in ("checkpoint-2", "rollouts/iteration-2"):
        shutil.rmtree(tmp_path / name)
    (tmp_path / "rollouts" / "iteration-1" / "soft-labels" / "average.safetensors").unlink()
    with pytest.raises(ValueError, match="average.safetensors is missing: the average of the iterations before"):
        run(tmp_path, resume=True, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "kl"}, "`divergence` must be one of"),
        ({"soft_labels": False, "divergence": "reverse_kl"}, "is of soft labels, and `soft_labels=False` has none"),
        ({"soft_labels": False, "self_teacher": "base"}, "`self_teacher` is of soft labels. Set `soft_labels=True`"),
        ({"soft_labels": False, "teacher_top_k": 4}, "`teacher_top_k` is of soft labels"),
        ({"self_teacher": "ema"}, "`self_teacher` must be one of policy, base, average, got 'ema'"),
        ({"self_teacher_decay": 0.9}, "`self_teacher_decay` is of `self_teacher='average'`"),
        ({"self_teacher": "average", "self_teacher_decay": 1}, r"`self_teacher_decay` must be in \[0, 1\), got 1"),
        ({"teacher_top_k": 0}, "`teacher_top_k` must be at least 1, or None, got 0"),
        ({"loss_type": "dft"}, "`loss_type` must be 'nll' with `soft_labels`"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message) if "[" not in message else message):
        config(RACConfig, tmp_path, **{"soft_labels": True, **options})


def test_what_the_model_cannot_do_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`self_teacher='base'` needs the model by its name"):
        run(tmp_path / "a", self_teacher="base")
    with pytest.raises(ValueError, match=f"`teacher_top_k=999` is above the {VOCAB_SIZE} tokens"):
        run(tmp_path / "b", teacher_top_k=999)
    lora = LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="LM head|`lm_head` is not supported"):
        run(tmp_path / "c", model=get_peft_model(tiny_model(), lora))
