"""`exbias rollouts` on real runs of a tiny model."""

import json

import pyarrow.parquet as pq
import pytest

from trl_exbias import BASHConfig, BASHTrainer, RACConfig, RACTrainer
from trl_exbias.cli.main import main

from ..loop.runs import config, trainer
from ..tiny import conversations


def bash(folder, **options):
    done = trainer(BASHTrainer, config(BASHConfig, folder, sft_epochs=0, **options), conversations(8))
    done.train()
    done.save_model(str(folder))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "one": bash(folder / "one", beta=0.5, num_iterations=2),
        "same": bash(folder / "same", beta=0.5),
        "other": bash(folder / "other", beta=0.5, temperature=0.0),
    }


def test_inspect_shows_settings_rates_and_text(runs, capsys):
    assert main(["rollouts", "inspect", str(runs["one"]), "--num_rows", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("iteration 1: BASH") == shown.count("iteration 2: BASH") == 1
    assert "8 branches (8 mixed)" in shown and "beta=0.5" in shown and "bash/changed_rate" in shown
    assert shown.count(", mixed: ") == 4


def test_inspect_shows_corrections(tmp_path, capsys):
    options = {"max_new_tokens": 8, "correction_template": "{{ prompt }} {{ reference }}"}
    done = trainer(RACTrainer, config(RACConfig, tmp_path, **options), conversations(4))
    done.train()  # and saves nothing: there is no tokenizer to read
    assert main(["rollouts", "inspect", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "4 branches (4 own)" in shown and "] → [" in shown


def test_diff_says_what_differs_and_exits_so(runs, capsys):
    assert main(["rollouts", "diff", str(runs["one"]), str(runs["same"])]) == 0
    assert "8 branches in both, 0 of them differ" in capsys.readouterr().out
    assert main(["rollouts", "diff", str(runs["one"]), str(runs["other"]), "--num_rows", "1"]) == 1
    shown = capsys.readouterr().out
    assert "temperature: 1.0 and 0.0" in shown
    assert shown.count(", mixed, from token ") == 1


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_export_is_one_file_of_all_branches_with_their_text(runs, tmp_path, suffix, capsys):
    file = tmp_path / f"rollouts.{suffix}"
    assert main(["rollouts", "export", str(runs["one"]), str(file)]) == 0
    rows = (
        pq.read_table(file).to_pylist() if suffix == "parquet" else list(map(json.loads, file.read_text().splitlines()))
    )
    assert len(rows) == 16 and {row["iteration"] for row in rows} == {1, 2}
    assert all(len(row["text"].encode()) >= len(row["input_ids"]) - 2 or "\ufffd" in row["text"] for row in rows)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["inspect", "{folder}/nothing"], "holds no rollouts"),
        (["inspect", "{folder}/one", "--iteration", "7"], "has no iteration 7; it has 1, 2"),
        (["export", "{folder}/one", "rollouts.csv"], "must end in .jsonl or .parquet"),
    ],
)
def test_wrong_uses_are_explained(runs, argv, message, capsys):
    folder = str(runs["one"].parent)
    assert main(["rollouts", *(part.format(folder=folder) for part in argv)]) == 2
    assert message in capsys.readouterr().err
