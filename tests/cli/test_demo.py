"""What `exbias demo` shows, counted: a tiny model stands in the place where the embedded one is kept."""

import os
import re
import subprocess
import sys

import pytest

from trl_exbias.demo.embedded_model import embedded_model_folder

from ..tiny import byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXBIAS_CACHE", str(folder))
        place = embedded_model_folder()
    tiny_model().save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    done = subprocess.run(
        [sys.executable, "-m", "trl_exbias.cli.main", "demo", "--quick", "--rows", "4", "--held_out", "2"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "TRL_EXBIAS_CACHE": str(folder)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done, folder


def test_there_is_one_bar_a_phase_and_nothing_else_on_the_error_stream(shown):
    lines = [line.strip() for line in re.split(r"[\r\n]", shown[0].stderr) if line.strip()]
    assert {line.partition("  ")[0] for line in lines} == {
        "BASH: training on gold",
        "BASH: training on gold and rollouts",
    }


def test_the_output_ends_in_a_table_and_what_to_do_next(shown):
    done, folder = shown
    out = done.stdout
    said = re.sub(r"\(\d+ warnings? of (a library|libraries)\)", "", out)
    assert "warn" not in said.lower() and "{'" not in said
    assert re.search(r"^BASH +[\d.]+ → [\d.]+ +[\d.]+ → [\d.]+ +\d+% → \d+%$", out, re.MULTILINE)
    assert out.index("What to do next") > out.index("Held-out, 2 word problems")
    assert "Log: runs/demo/_log.txt" in out and (folder / "runs/demo/_log.txt").is_file()
    assert len(out.splitlines()) < 30


def test_the_first_command_that_is_named_next_works(shown):
    done, folder = shown
    command = re.search(r"exbias (rollouts inspect \S+)", done.stdout)[1].split()
    again = subprocess.run(
        [sys.executable, "-m", "trl_exbias.cli.main", *command], capture_output=True, text=True, cwd=folder
    )
    assert again.returncode == 0 and "BASH" in again.stdout, again.stderr[-2000:]


def test_a_package_that_is_missing_is_named_before_anything_is_loaded(tmp_path):
    code = (
        "import sys, importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'gguf' else real(name, *rest)\n"
        "from trl_exbias.cli.main import main; status = main(['demo', '--quick'])\n"
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "pip install trl-exbias[demo]" in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())
