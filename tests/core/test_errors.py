"""What the user did wrong is one line; everything else keeps its traceback."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trl_exbias.cli import training
from trl_exbias.core import files
from trl_exbias.core.errors import ExbiasError, UsageError, UsageTypeError
from trl_exbias.core.files import flush, lock, write_atomically
from trl_exbias.core.local_names import check_local, is_local
from trl_exbias.run.errors import NotWrittenError, RunStoppedError
from trl_exbias.run.rollout_store import RolloutStoreError
from trl_exbias.settings.parser import Parser, plain_problem
from trl_exbias.settings.recipe import RecipeError


def test_errors_are_still_the_builtins_they_were():
    assert issubclass(RecipeError, UsageError) and issubclass(UsageError, ValueError)
    assert issubclass(RolloutStoreError, UsageError)
    assert issubclass(UsageTypeError, TypeError) and issubclass(UsageTypeError, ValueError)
    assert issubclass(RunStoppedError, RuntimeError) and issubclass(RunStoppedError, ExbiasError)


@pytest.mark.parametrize(
    "error", [TypeError("'NoneType' object is not iterable"), ValueError("too many values"), KeyError("x")]
)
def test_an_error_of_our_own_keeps_its_traceback(error, monkeypatch):
    monkeypatch.setattr(training, "check_keys", lambda *args: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        training.script("bash", [])


def test_an_error_of_the_users_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(training, "check_keys", lambda *args: (_ for _ in ()).throw(UsageError("`beta` must be …")))
    assert training.script("bash", []) == 2
    assert capsys.readouterr().err == "error: `beta` must be …\n"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "argument --rollout_engine: invalid choice: 'vlm' (choose from 'transformers', 'vllm')",
            "`--rollout_engine vlm` is not one of transformers, vllm. Did you mean `vllm`?",
        ),
        (
            "argument --rollout_engine/--engine: invalid choice: 'x' (choose from transformers, vllm)",
            "`--rollout_engine x` is not one of transformers, vllm.",
        ),
        ("argument --seed: invalid int value: 'one'", "`--seed one` is not a whole number."),
        ("argument --seed: invalid float value: 'one'", "`--seed one` is not a number."),
        ("the following arguments are required: --data", "The following arguments are required: --data."),
    ],
)
def test_a_command_lines_mistake_is_said_in_our_words(message, expected):
    assert plain_problem(message) == expected


def test_a_wrong_choice_prints_no_usage(capsys):
    parser = Parser(prog="exbias thing")
    parser.add_argument("--kind", choices=["one", "two"])
    with pytest.raises(SystemExit) as left:
        parser.parse_args(["--kind", "tow"])
    assert left.value.code == 2
    assert capsys.readouterr().err == (
        "error: `--kind tow` is not one of one, two. Did you mean `two`? `exbias thing --help` tells more.\n"
    )


@pytest.mark.parametrize(
    ("name", "local"),
    [("./model", True), ("/nowhere", True), ("~/model", True), ("a/b/c", True), ("train.jsonl", True)]
    + [("gpt2", False), ("owner/model", False)],
)
def test_a_name_that_can_only_be_a_path_is_one(name, local):
    assert is_local(name) == local


def test_a_path_that_is_not_there_is_one_message(tmp_path):
    with pytest.raises(UsageError, match=rf"There is a folder `{tmp_path}`, but no `data/train.jsonl` in it"):
        check_local("dataset_name", f"{tmp_path}/data/train.jsonl")
    with pytest.raises(UsageError, match="`dataset_name: train.jsonl` is not there"):
        check_local("dataset_name", "train.jsonl")
    with pytest.raises(UsageError, match="`~` is not expanded here"):
        check_local("model_name_or_path", "~/model")
    check_local("model_name_or_path", str(tmp_path))
    check_local("model_name_or_path", "owner/model")


def test_only_a_full_disk_asks_for_room():
    full = NotWrittenError(Path("run"), OSError(errno.ENOSPC, "No space left on device"), "kept.")
    other = NotWrittenError(Path("run"), ValueError("top_p is set"), "kept.")
    assert "Make room" in str(full)
    assert "Make room" not in str(other) and "ValueError: top_p is set" in str(other)


@pytest.mark.parametrize("command", ["recipes list", "--help", "check --help"])
def test_a_reader_that_has_seen_enough_is_no_error(command):
    command = f"{sys.executable} -m trl_exbias.cli.main {command} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_files_are_whole_where_folders_cannot_be_flushed(tmp_path, monkeypatch):
    """As on Windows."""
    real = os.open

    def no_folders(path, *args):
        if Path(path).is_dir():
            raise PermissionError(path)
        return real(path, *args)

    monkeypatch.setattr(os, "open", no_folders)
    write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    flush(tmp_path / "file")


def test_a_lock_is_held_by_one(tmp_path, monkeypatch):
    with open(tmp_path / "file", "wb") as first, open(tmp_path / "file", "wb") as second:
        assert lock(first) and not lock(second)
        monkeypatch.setattr(files, "fcntl", None)
        assert lock(second), "where there are no locks, none is asked for"
