from importlib import metadata

import pytest

from trl_exbias.cli.main import COMMANDS, main
from trl_exbias.settings.methods import methods


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in [*COMMANDS, *methods()])


def test_no_command_is_a_usage_error(capsys):
    assert main([]) == 2


def test_a_mistyped_command_gets_the_nearest(capsys):
    assert main(["bsh"]) == 2
    assert "Did you mean `bash`?" in capsys.readouterr().err


def test_recipes_are_listed_shown_and_copied(capsys, tmp_path):
    assert main(["recipes", "list"]) == 0
    assert "rac/mistral-7b_ultrachat" in capsys.readouterr().out
    assert main(["recipes", "show", "bash/pythia-1b_tldr"]) == 0
    shown = capsys.readouterr().out
    target = tmp_path / "mine.yaml"
    assert main(["recipes", "copy", "bash/pythia-1b_tldr", str(target)]) == 0
    assert target.read_text() == shown
    assert main(["recipes", "copy", "bash/pythia-1b_tldr", str(target)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["recipes"], ["recipes", "burn", "x"], ["recipes", "show", "nothing"]])
def test_a_wrong_use_of_recipes_is_a_usage_error(argv, capsys):
    assert main(argv) == 2
    assert capsys.readouterr().err


def test_env_names_the_versions(capsys):
    assert main(["env"]) == 0
    assert f'"trl": "{metadata.version("trl")}"' in capsys.readouterr().out
