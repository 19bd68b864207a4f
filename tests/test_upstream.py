"""What we use of TRL, transformers, accelerate, torch and DeepSpeed besides their public interfaces: it is there, and it is listed."""

import ast
import importlib
import inspect
import logging
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

import trl_exbias
from trl_exbias.core import upstream_surfaces
from trl_exbias.core.errors import UnsupportedReleaseError
from trl_exbias.core.surfaces import (
    Abstract,
    Attributes,
    Called,
    Equals,
    Mentions,
    Operator,
    Overridden,
    PassedOn,
    Surface,
    check_releases,
    mismatches,
)
from trl_exbias.core.upstream_surfaces import SURFACES


PACKAGE = Path(trl_exbias.__file__).parent
LIBRARIES = ("trl", "transformers", "accelerate", "deepspeed", "torch", "peft", "datasets", "huggingface_hub")
#: Modules that their packages document: everything else is imported in `core/upstream.py` alone.
DOCUMENTED = {
    *LIBRARIES,
    *("accelerate.utils", "datasets.exceptions", "peft.tuners.tuners_utils", "transformers.cache_utils"),
    *(
        "huggingface_hub.errors",
        "huggingface_hub.repocard_data",
        "torch.nn",
        "torch.nn.attention.flex_attention",
        "torch.nn.functional",
        "torch.overrides",
    ),
    *("torch.distributed", "torch.distributed.checkpoint.state_dict", "torch.distributed.elastic.multiprocessing"),
    *("torch.distributed.elastic.multiprocessing.errors", "torch.distributed.fsdp", "torch.distributed.tensor"),
    *("torch.optim.lr_scheduler", "torch.utils.data"),
}
#: Our own, or Python's.
OURS = {"_call_in_forward", "_actions"}


def sources() -> dict[str, ast.Module]:
    paths = [path for path in PACKAGE.rglob("*.py") if "vllm" not in str(path.relative_to(PACKAGE))]
    return {str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


SOURCES = sources()


def listed_names() -> set[str]:
    return {name for surface in SURFACES for name in (*surface.names, re.split(r"[:.]", surface.where)[-1])}


def test_every_surface_is_as_expected():
    problems = mismatches(SURFACES)
    assert not problems, "\n".join(["What we use of other packages has changed:", *problems])


def test_every_surface_is_used_where_it_says():
    for surface in SURFACES:
        source = (PACKAGE / surface.used).read_text(encoding="utf-8")
        names = surface.names if isinstance(surface, Attributes) else []
        assert all(name in source for name in names), surface


def test_nothing_private_is_imported_elsewhere():
    imported = {
        f"{path} imports {alias.name} from {node.module}"
        for path, tree in SOURCES.items()
        if path != "core/upstream.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in LIBRARIES
        for alias in node.names
        if node.module not in DOCUMENTED or alias.name.startswith("_")
    }
    assert not imported


#: The standard library's.
PYTHONS = ("_exit", "_getframe", "_run_exitfuncs", "_shutdown")


def test_every_private_attribute_that_is_not_ours_is_listed():
    own, used = set(OURS), {}
    for path, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute):
                on_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                if isinstance(node.ctx, ast.Store) and on_self:
                    own.add(node.attr)
                else:
                    used.setdefault(node.attr, path)
    private = {name: path for name, path in used.items() if re.match("_[^_]", name) and name not in PYTHONS}
    assert not {f"{path} uses {name}" for name, path in private.items() if name not in own | listed_names()}


def test_every_method_that_we_override_is_listed():
    listed = {tuple(re.split(r"[:.]", surface.where)[-2:])[-1] for surface in SURFACES} | {
        name for surface in SURFACES if isinstance(surface, Abstract) for name in surface.names
    }
    found = set()
    for module in pkgutil.walk_packages([str(PACKAGE)], "trl_exbias."):
        if module.name.startswith(("trl_exbias.loop", "trl_exbias.methods", "trl_exbias.rollouts.local")):
            for cls in vars(importlib.import_module(module.name)).values():
                if inspect.isclass(cls) and cls.__module__ == module.name and not issubclass(cls, TrainerCallback):
                    found |= {(cls, name) for name in overridden(cls) if name not in listed}
    assert not found


def overridden(cls: type) -> set[str]:
    theirs = [base for base in cls.__mro__ if base.__module__.split(".")[0] in ("trl", "transformers", "accelerate")]
    return {
        name
        for name, value in vars(cls).items()
        if inspect.isfunction(value) and not name.startswith("__") and any(name in vars(base) for base in theirs)
    }


class Example:
    def __init__(self):
        self._kept: int = 1

    def method(self, first, second=None, *, third=3):
        return first, second


def test_what_has_changed_is_said_in_one_list():
    here = f"{__name__}:"
    surfaces = [
        Surface(f"{here}Gone", "a.py"),
        Called(f"{here}Example.method", "b.py", "first third"),
        Called(f"{here}Example.method", "b.py", "first fourth"),
        Called(f"{here}Example.method", "b.py", "second"),
        PassedOn(f"{here}Example.method", "c.py", "first fourth"),
        Overridden(f"{here}Example.method", "d.py", "first second third", returns=2),
        Overridden(f"{here}Example.method", "d.py", "first second"),
        Overridden(f"{here}Example.method", "d.py", "first second third", returns=3),
        Attributes(f"{here}Example", "e.py", "_kept method _lost"),
        Equals(f"{here}LIBRARIES", "f.py", value=()),
        Mentions("trl.no_such_file", "g.py", "anything"),
        Mentions("trl.data_utils", "g.py", "def no_such_word"),
        Abstract("transformers.cache_utils:CacheLayerMixin", "h.py", "update"),
        Surface("no_such_package.module:thing", "i.py"),
        Operator("torch:ops.aten.relu", "j.py", "self other"),
        Operator("torch:ops.aten.no_such_operator", "k.py", "self"),
    ]
    problems = mismatches(surfaces)
    expected = [
        "Gone is gone",
        "takes (first, second, third), expected fourth among them",
        "asks for first besides (second)",
        "takes (first, second, third), expected fourth among them",
        "takes (first, second, third), expected (first, second)",
        "returns 2 values, expected 3",
        "has no _lost",
        "expected ()",
        "is gone",
        "does not mention",
        "asks for ",
        "takes (self), expected (self, other)",
    ]
    assert len(problems) == len(expected), problems
    for problem, part in zip(problems, expected, strict=True):
        assert part in problem and "(used in " in problem, problem


def test_an_untested_release_is_warned_of_and_refused_only_where_something_has_gone(caplog):
    there, gone = [Surface("trl:SFTTrainer", "a.py")], [Surface("trl:NoTrainer", "loop/joint.py")]
    installed = ".".join(trl_version().split(".")[:2])
    with caplog.at_level(logging.WARNING):
        check_releases({"trl": (installed, installed)}, gone)
        assert not caplog.messages
        check_releases({"trl": ("0.1", "0.2")}, there)
    assert f"trl {trl_version()} (tested: 0.1 to 0.2)" in caplog.text
    with pytest.raises(UnsupportedReleaseError, match=r"trl:NoTrainer is gone .*used in loop/joint.py") as error:
        check_releases({"trl": ("0.1", "0.2")}, gone)
    assert "tested: 0.1 to 0.2" in str(error.value)


def test_the_trainers_ask_when_they_are_imported(monkeypatch):
    asked = []
    monkeypatch.setattr(upstream_surfaces, "check_installed", lambda: asked.append(True))
    importlib.reload(importlib.import_module("trl_exbias.loop"))
    assert asked


def test_help_does_not_ask():
    code = "import sys; from trl_exbias.cli.main import main; main(['--help']); assert 'trl_exbias.loop' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_ranges_are_those_of_the_distribution():
    text = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    for package, (oldest, _) in upstream_surfaces.TESTED.items():
        assert re.search(rf'"{package}>={oldest}', text), package


def trl_version() -> str:
    import trl

    return trl.__version__


def test_tensors_of_one_storage_are_known_by_it():
    from trl_exbias.core.upstream import storage_id

    whole = torch.empty(4, device="meta")
    assert storage_id(whole[:2]) == storage_id(whole) != storage_id(torch.empty(4, device="meta"))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The hub's cache with one repository of two commits, of which `main` is the first and `v2` the second."""
    from huggingface_hub import constants
    from transformers import LlamaConfig

    repository = tmp_path / "models--me--tiny"
    for revision, commit in (("main", "1" * 40), ("v2", "2" * 40)):
        LlamaConfig(num_hidden_layers=1).save_pretrained(repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_the_commit_of_a_configuration_is_known(hub_cache):
    """transformers has not noted it since 5.18: a run's record, its model card and the weights given to vLLM name it."""
    from transformers import AutoConfig

    from trl_exbias.core.upstream import commit_hash, note_commit

    for revision, commit in (("main", "1" * 40), ("v2", "2" * 40)):
        config = AutoConfig.from_pretrained("me/tiny", revision=revision, cache_dir=hub_cache, local_files_only=True)
        note_commit(config, revision)
        assert commit_hash(config) == commit
        assert "_commit_hash" not in config.to_dict()


def test_a_commit_that_cannot_be_told_is_not_guessed(hub_cache):
    import shutil

    from transformers import LlamaConfig

    from trl_exbias.core.upstream import commit_hash, note_commit

    unknown = LlamaConfig(name_or_path="me/tiny")
    assert commit_hash(unknown) is None  # two commits are in the cache
    shutil.rmtree(hub_cache / "models--me--tiny" / "snapshots" / ("2" * 40))
    assert commit_hash(unknown) == "1" * 40
    for name in ("", str(hub_cache), "not/a/name", "me/other"):
        config = LlamaConfig(name_or_path=name)
        note_commit(config, None)
        assert commit_hash(config) is None
