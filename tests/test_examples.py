"""The examples run as a user runs them, on a tiny model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .tiny import byte_tokenizer, tiny_model


EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("script", "expected"), [("own_method.py", "loss/halfway"), ("quickstart.py", "loss/gold")])
def test_an_example_runs(script, expected, model, tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, model],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert expected in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "options", "rows"),
    # All arms of one domain at a toy size: teacher, student, and six arms; the student, and two or three arms of each seed.
    [("examples.story_domains", [], 8), ("examples.own_states", ["--seeds", "2"], 4)],
)
def test_an_experiment_on_stories_runs_and_continues_where_it_stopped(module, options, rows, tmp_path):
    """A second run trains nothing."""
    data = EXAMPLES.parents[1] / "shared" / "data" / "story_domains"
    if not data.is_dir():
        pytest.skip("../shared/data/story_domains is not here")
    argv = ["-m", module, str(data), "--domains", "investigators", "--trajectories", "4", "--starts", "4", *options]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    first = subprocess.run([sys.executable, *argv], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr[-3000:]
    assert first.stdout.count("| investigators |") == rows
    again = subprocess.run([sys.executable, *argv], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.startswith("| domain |")
