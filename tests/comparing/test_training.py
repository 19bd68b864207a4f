import json
import os
import subprocess
import sys

import pytest
import yaml

from trl_exbias.comparing.comparison_file import PlannedRun
from trl_exbias.comparing.training import RunFailedError, is_finished, read_recipe, train, write_recipe

from .runs import write_run


RUN = PlannedRun("bash", "bash", {"beta": 0.2}, {"model_name_or_path": "m", "beta": 0.2, "logging_steps": 1})


def attempts(folder, *records):
    (folder / "attempts.json").write_text(json.dumps(records))


def test_a_recipe_has_the_runs_keys_its_folder_and_its_length(tmp_path):
    path = write_recipe(RUN, tmp_path / "bash", 34)
    assert yaml.safe_load(path.read_text()) == {**RUN.keys, "output_dir": str(tmp_path / "bash"), "max_steps": 34}
    write_recipe(RUN, tmp_path / "bash")
    assert "max_steps" not in read_recipe(tmp_path / "bash"), "nothing was begun: the length is open again"


def test_a_run_that_was_begun_keeps_its_length(tmp_path):
    folder = write_run(tmp_path / "bash")
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RUN.keys, "max_steps": 34}))
    write_recipe(RUN, folder, 35)
    assert read_recipe(folder)["max_steps"] == 34


def test_a_run_with_other_settings_is_refused_key_by_key_but_not_for_its_logs(tmp_path):
    folder = write_run(tmp_path / "bash")
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RUN.keys, "beta": 0.1, "logging_steps": 5, "optim": "sgd"}))
    with pytest.raises(ValueError) as error:
        write_recipe(RUN, folder)
    message = str(error.value)
    assert "`beta` was 0.1 and is now 0.2" in message and "`optim` was 'sgd' and is now None" in message
    assert "logging_steps" not in message
    assert read_recipe(folder)["beta"] == 0.1, "left as it was"


def test_a_run_is_finished_when_its_last_attempt_was(tmp_path):
    assert not is_finished(tmp_path)
    attempts(tmp_path, {"status": 0}, {"status": None})
    assert not is_finished(tmp_path)
    attempts(tmp_path, {"status": 85}, {"status": 0})
    assert is_finished(tmp_path)
    train(RUN, tmp_path, None, "bash")  # at once: there is no recipe here that it could run
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attempts.json"]


def test_a_trainer_that_was_left_behind_is_not_joined_by_a_second(tmp_path):
    """What is left of a comparison that was killed: the trainer, with the recipe on its command line."""
    write_recipe(RUN, tmp_path)
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path / "recipe.yaml")])
    try:
        attempts(tmp_path, {"seconds": 1.0, "status": None, "pid": left.pid})
        with pytest.raises(ValueError, match=f"being trained by process {left.pid}"):
            train(RUN, tmp_path, None, "bash")
    finally:
        left.kill()
        left.wait()


def test_a_run_that_fails_shows_the_end_of_its_log_and_is_gone_on_with(tmp_path):
    """A key that does not exist, found by the command itself; and a process id that has gone to someone else."""
    run = PlannedRun("bash", "bash", {}, {"bata": 0.2})
    write_recipe(run, tmp_path)
    attempts(tmp_path, {"seconds": 5.0, "status": None, "pid": os.getpid(), "host_bytes": None})
    with pytest.raises(RunFailedError, match="Did you mean `beta`"):
        train(run, tmp_path, 10, "bash")
    before, failed = json.loads((tmp_path / "attempts.json").read_text())
    assert before["seconds"] == 5.0 and failed["status"] == 2 and failed["pid"] is None
    assert failed["seconds"] > 0 and failed["host_bytes"] > 1e6 and not is_finished(tmp_path)
