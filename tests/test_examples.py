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


def test_the_own_method_example_is_thirty_lines():
    lines = (EXAMPLES / "own_method.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 30
