"""The bench through the package's own trainers: measures against enumeration, equal tokens, resuming, the report."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from trl_exbias.bench.arms import ARMS, BY_NAME, own_arm
from trl_exbias.bench.measures import MEASURES, measure
from trl_exbias.bench.model import dataset_of, new_model, starting_dataset, tokenizer_of
from trl_exbias.bench.names import METHODS, TASK_NAMES
from trl_exbias.bench.plan import Bench, Cell, Sizes, plan_bench
from trl_exbias.bench.report import write_report
from trl_exbias.bench.run import _make_teacher, run_cell
from trl_exbias.bench.statistics import paired_difference
from trl_exbias.bench.tasks import TASKS
from trl_exbias.bench.training import train
from trl_exbias.cli.bench import run


ROOT = Path(__file__).parents[2]


def test_the_command_lines_names_are_the_real_ones():
    assert tuple(TASKS) == TASK_NAMES
    assert tuple(arm.name for arm in ARMS) == METHODS


@pytest.mark.parametrize("name", TASKS)
def test_words_are_tokens_at_their_places(name):
    task = TASKS[name]
    tokenizer, rows = tokenizer_of(task), task.make(4, seed=0)
    for prompt, response, row in zip(rows.prompts, rows.responses, dataset_of(task, rows), strict=True):
        assert tokenizer(row["prompt"] + row["completion"])["input_ids"] == [*prompt.tolist(), *response.tolist()]


def test_a_rewriting_shows_the_response_behind_another_rows_prompt():
    task = TASKS["fix-reference"]
    rows = task.make(6, seed=0)
    plain, both = dataset_of(task, rows), starting_dataset(task, rows, seed=0)
    rewritings = [row for row in both if "=" in row["prompt"]]
    assert len(both) == 12 and len(rewritings) == 6
    own = {row["completion"]: row["prompt"] for row in plain}
    assert all(row["prompt"].endswith(f"{row['completion']} = ") for row in rewritings)
    assert sum(row["prompt"].startswith(own[row["completion"]]) for row in rewritings) <= 1


def test_measures_are_those_of_a_slow_loop():
    task = TASKS["fix"]
    rows, model = task.make(12, seed=2), new_model(task, seed=0).eval()
    found = measure(model, task, rows, pad_token_id=len(task.words) + 1)
    after_gold, greedy_right = [], []
    with torch.no_grad():
        for prompt, gold in zip(rows.prompts.tolist(), rows.responses.tolist(), strict=True):
            tokens = []
            for place, target in enumerate(gold):
                logits = model(input_ids=torch.tensor([prompt + gold[:place]])).logits[0, -1]
                after_gold.append(-logits.log_softmax(-1)[target].item())
                tokens.append(model(input_ids=torch.tensor([prompt + tokens])).logits[0, -1].argmax().item())
            greedy_right.append([own == target for own, target in zip(tokens, gold, strict=True)])
    right = torch.tensor(greedy_right).float()
    assert found["teacher_forced"] == pytest.approx(sum(after_gold) / len(after_gold), abs=1e-4)
    assert found["tokens_greedy"] == pytest.approx(right.mean().item())
    assert found["final_greedy"] == pytest.approx(right[:, -1].mean().item())
    assert found["whole_greedy"] == pytest.approx(right.prod(1).mean().item())
    assert set(found) == {m.key for m in MEASURES}
    # After gold all but the first token is certain: there the divergence is the cross-entropy.
    certain = torch.tensor(after_gold).view(12, -1)[:, 1:]
    assert found["kl_gold"] * 16 > certain.sum(1).mean().item() - 1e-3


@pytest.mark.parametrize(
    "arm", [BY_NAME[name] for name in ("sft", "bash-0.5", "rac", "dad-dagger-0.5")], ids=lambda arm: arm.name
)
def test_arms_consume_the_tokens_they_are_given(arm):
    task = TASKS["walk"]
    tokenizer, data = tokenizer_of(task), dataset_of(task, task.make(256, seed=0))
    teacher = new_model(task, seed=9).eval() if arm.has_teacher else None
    _, consumed = train(arm, lambda: new_model(task, 0), tokenizer, data, 25, 150_000, seed=0, teacher=teacher)
    total = sum(consumed[key] for key in ("trained", "generated", "labels"))
    assert total == pytest.approx(150_000, rel=0.08)
    assert consumed["trained"] > 0


def test_too_few_tokens_are_refused_with_what_the_rollouts_take():
    task = TASKS["walk"]
    data = dataset_of(task, task.make(128, seed=0))
    with pytest.raises(ValueError, match="100 tokens are too few for bash-1: its rollouts and labels alone take"):
        train(BY_NAME["bash-1"], lambda: new_model(task, 0), tokenizer_of(task), data, 25, 100, seed=0)


def test_a_cell_is_run_once_and_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("trl_exbias.bench.run.START_TOKENS", {"walk": 20_000})
    arms = (
        ARMS[0],
        own_arm("examples.own_method:HalfwayTrainer num_iterations=2"),
        BY_NAME["kd"],
    )
    sizes = Sizes(seeds=2, rows=128, held_out=32, teacher_rows=128, arm_tokens=20_000, teacher_tokens=20_000)
    bench = Bench(tmp_path, ("walk",), arms, sizes)
    _make_teacher(bench, "walk")
    for cell in bench.cells():
        run_cell(bench, cell)
    path = bench.result_file(Cell("walk", 1), arms[1])
    before = path.stat().st_mtime_ns
    run_cell(bench, Cell("walk", 1))
    assert path.stat().st_mtime_ns == before, "what is there is not run again"
    assert len(bench.results()) == 6 and len(bench.starts()) == 2
    report, page, data = write_report(bench.results(), bench.starts(), tmp_path)
    values = json.loads(data.read_text(encoding="utf-8"))["walk"]
    assert list(values) == ["start", "sft", "HalfwayTrainer-num_iterations-2", "kd"]
    by_seed = {arm: values[arm]["kl_own"]["by_seed"] for arm in values}
    differences = [by_seed["kd"][seed] - by_seed["sft"][seed] for seed in ("0", "1")]
    assert values["kd"]["kl_own"]["difference"]["mean"] == pytest.approx(sum(differences) / 2)
    assert "HalfwayTrainer-num" in report.read_text(encoding="utf-8")
    assert "<td" in page.read_text(encoding="utf-8")


def test_an_interval_is_students_over_paired_seeds():
    found = paired_difference({0: 2.0, 1: 4.0, 2: 9.0, 3: None}, {0: 1.0, 1: 2.0, 2: 3.0, 3: 0.0})
    assert (found.mean, found.seeds) == (3.0, 3)
    assert found.half_width == pytest.approx(4.302653 * 2.6457513 / 3**0.5, rel=1e-5)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    assert not paired_difference({0: 1.0}, {0: 0.0}).is_above_zero, "one seed shows nothing"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "fixed"], "There is no task `fixed`. There are fix, fix-reference"),
        (["--method", "bush"], "There is no method `bush`. There are sft, bash-0.2"),
        (["--method", "nowhere:Trainer"], "`nowhere:Trainer` cannot be loaded: there is no module `nowhere`"),
        (["--method", "trl_exbias:BASHTrainer beta"], "is not a method. Expected `module:Trainer`"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_runs(arguments, message, tmp_path, capsys):
    assert run(["--output", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_results_of_other_sizes_are_not_mixed(tmp_path):
    plan_bench(tmp_path, quick=True)
    plan_bench(tmp_path, quick=True, seeds=3)
    with pytest.raises(ValueError, match="holds results of a bench with other sizes"):
        plan_bench(tmp_path)
    with pytest.raises(ValueError, match=r"other sizes \(arm_tokens\)"):
        plan_bench(tmp_path, quick=True, tokens=1_000_000)
    assert plan_bench(tmp_path / "longer", tokens=1_000_000).sizes == Sizes(arm_tokens=1_000_000)


POOL = """
import multiprocessing, os, signal
from concurrent.futures import ProcessPoolExecutor
from trl_exbias.bench.run import _begin_worker

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker)
    print(pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_bench_that_is_killed_leaves_no_worker(tmp_path):
    script, told = tmp_path / "pool.py", tmp_path / "worker"
    script.write_text(POOL)
    with told.open("w") as out:  # a pipe would be open for as long as the worker is there
        subprocess.run([sys.executable, script], stdout=out, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(told.read_text())).wait(timeout=20)
