"""What is said in two places is the same in both: versions, folders, commands."""

import re
from pathlib import Path

import pytest
import yaml

import trl_exbias

from .test_layout import FOLDERS


ROOT = Path(__file__).parents[1]
TEMPLATES = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_one():
    (ours,) = re.findall(r'^version = "(.+)"$', text("pyproject.toml"), re.MULTILINE)
    assert ours == trl_exbias.__version__ == yaml.safe_load(text("CITATION.cff"))["version"]


def test_pre_commit_formats_as_lint_does():
    (hooks,) = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    assert f"\nruff=={hooks['rev'].removeprefix('v')}\n" in text(".ci/constraints.txt")
    assert [hook["id"] for hook in hooks["hooks"]] == ["ruff-check", "ruff-format"]


def test_the_workflow_runs_what_everybody_runs():
    steps = yaml.safe_load(text(".github/workflows/ci.yml"))["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]


@pytest.mark.parametrize("path", [path for path in TEMPLATES if path.stem != "config"], ids=lambda path: path.stem)
def test_issues_ask_for_the_environment(path):
    fields = {field["id"]: field for field in yaml.safe_load(path.read_text(encoding="utf-8"))["body"]}
    assert "exbias env" in fields["env"]["attributes"]["label"]


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/development.md"])
def test_documents_name_every_folder_and_no_file_that_is_not_there(name):
    said = text(name)
    assert not [folder for folder in FOLDERS if f"`trl_exbias/{folder}`" not in said]
    paths = re.findall(r"`((?:tests|trl_exbias|docs|examples)/[\w./-]+)`", said)
    assert paths and not [path for path in paths if not (ROOT / path).exists()]
    targets = {target for line in re.findall(r"\bmake ([a-z -]+)", said) for target in line.split()}
    known = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    assert {"test", "lint", "coverage"} <= targets and targets <= known
