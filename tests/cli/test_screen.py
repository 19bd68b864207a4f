"""Which log records are on the screen, and which are in the file."""

import subprocess
import sys

import pytest


CODE = """
import logging, sys, warnings
from pathlib import Path
from trl_exbias.core.calm import calm_imports
from trl_exbias.cli.screen import RunLog
calm_imports()
log = RunLog()
log.start()
import transformers
from transformers.utils import logging as of_transformers
of_transformers.get_logger("transformers.models").warning("a library's warning")
logging.getLogger("DeepSpeed").warning("another library's warning")
warnings.warn("a Python warning")
logging.getLogger("elsewhere").error("a library's error")
logging.getLogger("trl_exbias.loop").warning("our warning")
if "file" in sys.argv:
    log.open(Path("run/log.txt"))
    logging.getLogger("elsewhere").warning("a late warning")
    print(log.summary())
log.spill()
"""
HIDDEN = ("a library's warning", "another library's warning", "a Python warning", "a late warning")
SHOWN = ("elsewhere: a library's error", "trl_exbias.loop: our warning")


@pytest.fixture
def run(tmp_path):
    def run(*argv):
        done = subprocess.run([sys.executable, "-c", CODE, *argv], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_warnings_of_libraries_go_to_the_file_and_errors_and_our_own_to_both(run, tmp_path):
    done = run("file")
    written = (tmp_path / "run/log.txt").read_text()
    assert not [said for said in HIDDEN if said in done.stderr]
    assert not [said for said in SHOWN if done.stderr.count(said) != 1]
    assert not [said for said in (*HIDDEN, *SHOWN) if written.count(said) != 1]
    assert done.stdout == "Log: run/log.txt (4 warnings of libraries)\n"
    assert "Log: run/log.txt" in done.stderr, "where it is, for whoever looks for the reason of a crash"


def test_a_crash_before_there_is_a_file_shows_what_was_held(run, tmp_path):
    done = run()
    assert not [said for said in HIDDEN[:3] if done.stderr.count(said) != 1]
    assert not list(tmp_path.iterdir())


def test_the_benchs_workers_say_nothing():
    pytest.importorskip("deepspeed")
    code = "from trl_exbias.bench.run import _begin_worker; _begin_worker(); import deepspeed"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "accelerator" not in done.stderr
