"""Rollouts as a table in the trackers: what TensorBoard really holds after a run; wandb and trackio where they are installed."""

import sqlite3
from importlib.util import find_spec

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trl_exbias import BASHConfig, BASHTrainer

from ..tiny import plain_pairs
from .runs import config, trainer


def run(folder, tracker: str, **settings):
    args = config(
        BASHConfig, folder, sft_epochs=0, beta=0.5, report_to=tracker, log_completions=True, max_steps=1, **settings
    )
    done = trainer(BASHTrainer, args, plain_pairs(4))
    done.train()
    return done


def test_tensorboard_has_the_rollouts(tmp_path):
    run(tmp_path, "tensorboard")
    events = EventAccumulator(str(next(tmp_path.glob("runs/*"))), size_guidance={"tensors": 0})
    events.Reload()
    (entry,) = events.Tensors("completions/text_summary")
    lines = entry.tensor_proto.string_val[0].decode().splitlines()
    assert lines[0] == "| step | iteration | kind | prompt | gold | completion |"
    assert len(lines) == 2 + 4
    gold = plain_pairs(4)[0]
    assert any(gold["prompt"] in line and gold["completion"].strip() in line for line in lines)


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_has_the_rollouts(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run(tmp_path / "run", "wandb")
    tables = list(tmp_path.rglob("media/table/completions*.table.json"))
    assert len(tables) == 1
    assert plain_pairs(4)[0]["prompt"] in tables[0].read_text()


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_has_the_rollouts(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    run(tmp_path / "run", "trackio", project="tables")
    with sqlite3.connect(tmp_path / "tables.db") as database:
        logged = [str(row) for row in database.execute("select metrics from metrics")]
    assert sum('"completions"' in entry and plain_pairs(4)[0]["prompt"] in entry for entry in logged) == 1


def test_a_table_needs_a_tracker_that_shows_it(tmp_path):
    with pytest.raises(ValueError, match="`log_completions` needs one of trackio, wandb, tensorboard in `report_to`"):
        config(BASHConfig, tmp_path, log_completions=True)
    config(BASHConfig, tmp_path, log_completions=True, report_to=["none", "wandb"])
