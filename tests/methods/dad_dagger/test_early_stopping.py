"""An iteration ends where its evaluations do not improve, and its best weights continue."""

import json

import pytest
import torch
from transformers import TrainerCallback

from ...loop.runs import logged, weights
from ...tiny import tiny_model
from .runs import TEXTS, documents, make, run


class Evaluations(TrainerCallback):
    """Replaces the measured loss by a script, to steer what is stopped when."""

    def __init__(self, losses):
        self.losses = list(losses)
        self.weights = {}

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if "eval_loss" in logs:
            logs["eval_loss"] = state.log_history[-1]["eval_loss"] = self.losses.pop(0)
            self.weights[state.global_step] = torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def stopped_run(tmp_path, losses, **options):
    script = Evaluations(losses)
    done = run(
        tmp_path,
        alpha=1.0,
        num_train_epochs=4,
        eval_dataset=documents(TEXTS[:1]),
        callbacks=[script],
        **options,
    )
    return done, script


def test_an_iteration_ends_where_its_evaluation_does_not_improve_and_its_best_weights_go_on(tmp_path):
    # Iteration 1: best at step 2, over at step 3. Iteration 2: runs all of its four epochs, best at the end.
    done, script = stopped_run(tmp_path, [3.0, 2.0, 2.5, 2.0, 1.9, 1.8, 1.7])
    assert done.state.global_step == 3 + 4
    assert [phase["step"] for phase in done.state.log_history if "seconds/joint" in phase] == [3, 7]
    from trl_exbias.core.fingerprint import weights_fingerprint

    policy = tiny_model()
    torch.nn.utils.vector_to_parameters(script.weights[2], policy.parameters())
    manifest = json.loads((tmp_path / "rollouts" / "iteration-2" / "manifest.json").read_text())
    assert manifest["header"]["policy"] == weights_fingerprint(policy), "the best weights rolled out"


def test_the_last_iterations_best_weights_are_the_models(tmp_path):
    done, script = stopped_run(tmp_path, [3.0, 3.1, 2.0, 2.1])
    assert done.state.global_step == 4
    assert torch.equal(weights(done), script.weights[3])


def test_a_planned_schedule_moves_on_to_the_next_iteration(tmp_path):
    done, _ = stopped_run(tmp_path, [1.0, 2.0, 2.0, 1.9, 1.8, 1.7], lr_scheduler_type="linear", learning_rate=8e-3)
    # Steps 3 and 4 of 8 planned ones are left out; the logged rate is that of the update just done.
    assert logged(done, "learning_rate") == pytest.approx([8e-3, 7e-3, 4e-3, 3e-3, 2e-3, 1e-3])


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_a_run_with_early_stopping_resumes_bit_equal(tmp_path, step):
    losses = [3.0, 2.0, 2.5, 2.0, 1.9, 2.1]
    whole, _ = stopped_run(tmp_path / "whole", losses, save_strategy="epoch")
    import shutil

    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for path in (tmp_path / "part").glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)
    resumed, _ = stopped_run(tmp_path / "part", losses[step:], save_strategy="epoch", resume=True)
    assert resumed.state.global_step == whole.state.global_step == 6
    assert torch.equal(weights(resumed), weights(whole))


def test_an_sft_phase_has_no_best_weights_of_its_own(tmp_path):
    """Its evaluations are logged as well, but it is not an iteration."""
    done, _ = stopped_run(tmp_path, [1.0, 2.0, 3.0, 3.5, 2.0, 2.5], sft_epochs=2)
    # 2 SFT epochs; iteration 1 is over after its second evaluation, which is not better, and so is iteration 2.
    assert done.state.global_step == 2 + 2 + 2


def test_several_evaluation_sets_need_a_metric(tmp_path):
    sets = {"a": documents(TEXTS[:1]), "b": documents(TEXTS[1:2])}
    with pytest.raises(ValueError, match=r"which of the evaluation sets counts \(a, b\)"):
        make(tmp_path / "a", alpha=1.0, eval_dataset=sets)
    done = run(tmp_path / "b", alpha=1.0, eval_dataset=sets, metric_for_best_model="b_loss")
    assert list((tmp_path / "b" / "iteration-best").glob("step-*"))
    assert logged(done, "eval_b_loss")
