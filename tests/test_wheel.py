"""What `pip install` puts in place, away from the checkout: the wheel, in an environment that has nothing of ours but it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
#: The folders of the checkout that are installed, and where.
INSTALLED = {"trl_exbias": "trl_exbias", "recipes": "trl_exbias/recipes"}


def pip(*argv) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, argv)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    # Built from a copy: setuptools leaves folders of its own where it builds.
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in INSTALLED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", built, source)
    return next(built.glob("*.whl"))


def test_the_wheel_has_every_file_of_the_package(wheel):
    expected = {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in INSTALLED.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {"trl_exbias/py.typed", "trl_exbias/recipes/bash/pythia-1b_tldr.yaml"} <= expected
    assert {Path(name).suffix for name in expected} >= {".py", ".yaml", ".jinja"}
    assert found == expected


def test_the_installed_wheel_runs_from_another_folder(wheel, tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages") if os.name != "nt" else [venv / "Lib" / "site-packages"]
    # Its dependencies are this environment's; a `.pth` of that one (an editable install) is not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    programs = venv / ("Scripts" if os.name == "nt" else "bin")
    python = shutil.which("python", path=str(programs))
    pip("--python", python, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel)

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(program, *argv) -> str:
        command = [shutil.which(program, path=str(programs)), *argv]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert Path(call("python", "-c", "import trl_exbias; print(trl_exbias.__file__)").strip()).is_relative_to(venv)
    assert call("exbias", "demo", "--help").startswith("usage: exbias demo")
    assert "bash/pythia-1b_tldr" in call("exbias", "recipes", "list")
    # Templates and criteria are read from where they are installed.
    code = "from trl_exbias.methods.rac_template import _load, TEMPLATE_NAMES; print(all(_load(n)[1] for n in TEMPLATE_NAMES))"
    assert call("python", "-c", code).strip() == "True"
