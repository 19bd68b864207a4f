import dataclasses
import subprocess
import sys
import time
from importlib import metadata

import pytest
from trl import DatasetMixtureConfig, ModelConfig

from trl_exbias.cli.main import COMMANDS, main
from trl_exbias.settings.data_arguments import DataArguments
from trl_exbias.settings.help import sections
from trl_exbias.settings.methods import methods


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in [*COMMANDS, *methods()])


@pytest.mark.parametrize("command", [*COMMANDS, *methods()])
def test_help_is_there_at_once_and_imports_nothing_heavy(command, tmp_path):
    code = (
        "import sys; from trl_exbias.cli.main import main\n"
        "try: status = main([sys.argv[1], '--help'])\n"
        "except SystemExit as end: status = end.code\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'accelerate'} & {*sys.modules}\n"
        "sys.exit(status or ', '.join(heavy) or 0)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("usage: exbias "), done.stderr
    assert time.monotonic() - started < 5  # a quarter of a second where nothing else runs


@pytest.mark.parametrize("method", list(methods()))
def test_the_help_of_a_method_has_each_option_once_and_says_what_it_does(method):
    options = [option for _, options in sections(method) for option in options]
    classes = (methods()[method].config_class(), DataArguments, ModelConfig, DatasetMixtureConfig)
    expected = {field.name: field for cls in classes for field in dataclasses.fields(cls) if field.init}
    assert sorted(option.name for option in options) == sorted(expected)
    assert all(option.help for option in options)
    for option in options:
        default = expected[option.name].default
        assert option.default in (None, str(default)) or str(default) in vars(type(default)), option


def test_the_help_of_a_method_of_ones_own_begins_with_its_own_options(capsys, monkeypatch, tmp_path):
    (tmp_path / "halfway.py").write_text(
        "from dataclasses import dataclass, field\n"
        "from trl_exbias import BASHConfig, BASHTrainer\n"
        "@dataclass\n"
        "class HalfwayConfig(BASHConfig):\n"
        "    share: float = field(default=0.5, metadata={'help': 'How far.'})\n"
        "class HalfwayTrainer(BASHTrainer):\n"
        "    config_class = HalfwayConfig\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert main(["train", "--method", "halfway:HalfwayTrainer", "--help"]) == 0
    out = capsys.readouterr().out
    assert "HalfwayConfig:\n  --share float (default: 0.5)\n        How far.\n" in out
    assert out.index("--share") < out.index("--beta") < out.index("--num_iterations") < out.index("--adam_beta1")


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
