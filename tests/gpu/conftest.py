"""What all GPU tests share: an order, no TF32, a header that names the card, a time budget, and files of findings and of times."""

import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from .device import ASKED, ON_CUDA, VARIABLE, gpu_name


_HERE = Path(__file__).parent
_SECONDS = 30 if ON_CUDA else 300
_PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "triton")
#: What no CPU can stand in for first: kernels, then memory, then whole runs. What is not named here comes last.
_ORDER = ("fused_head", "distillation", "shared_context", "memory_plan", "trainers", "noise", "engine", "engine_bf16")
#: Findings that a test records rather than asserts, by its name.
_findings: dict[str, object] = {}
_findings_path: list[Path] = []


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _machine() -> dict[str, str]:
    found = {"device": gpu_name(), "python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}
    if ON_CUDA:
        found["cuda"], found["cudnn"] = str(torch.version.cuda), str(torch.backends.cudnn.version())
    return found


def pytest_report_header():
    return "GPU tests: " + ", ".join(f"{name} {value}" for name, value in _machine().items())


def pytest_collection_modifyitems(config, items):
    places = [i for i, item in enumerate(items) if _HERE in item.path.parents]
    ordered = sorted((items[i] for i in places), key=_rank)
    for i, item in zip(places, ordered, strict=True):
        items[i] = item
    for item in ordered:
        if config.pluginmanager.hasplugin("timeout") and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_SECONDS))
        if not ON_CUDA and not ASKED:
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU (or {VARIABLE}=cpu, for a dry run)"))
        elif ASKED == "cpu-quick" and item.get_closest_marker("quick_on_cpu") is None:
            item.add_marker(pytest.mark.skip(reason=f"takes a while on a CPU ({VARIABLE}=cpu runs it)"))


def _rank(item) -> int:
    name = item.path.stem.removeprefix("test_")
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


def pytest_runtest_logstart(nodeid):
    _log(nodeid, "started")


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        _log(report.nodeid, f"{report.outcome} after {report.duration:.2f} s")


def _log(nodeid: str, what: str) -> None:
    """A line in `$OUT/gpu_tests_times.log`, at once: a run that is cut off tells where it was."""
    if _HERE.name in Path(nodeid.partition("::")[0]).parts and os.environ.get("OUT"):
        with open(Path(os.environ["OUT"]) / "gpu_tests_times.log", "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {nodeid.rpartition('/')[2]} {what}\n")


@pytest.fixture(autouse=True)
def _full_float32():
    """Products of float32 are not rounded to TF32, and nothing of one test's memory is left to the next."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)
    if ON_CUDA:
        torch.cuda.empty_cache()


@pytest.fixture
def record(request, tmp_path_factory):
    """Writes findings under this test's name to `gpu_tests.json`, in `$OUT` or a temporary folder."""
    if not _findings_path:
        folder = os.environ.get("OUT")
        _findings_path.append(Path(folder or tmp_path_factory.getbasetemp()) / "gpu_tests.json")

    def write(**findings: object) -> None:
        name = request.node.nodeid.rpartition("/")[2]
        _findings.setdefault(name, {}).update(findings)
        # At once: a run that is cut off keeps what it has found.
        _findings_path[0].write_text(json.dumps({"machine": _machine(), "findings": _findings}, indent=1))

    return write


def pytest_terminal_summary(terminalreporter):
    if _findings_path:
        terminalreporter.write_line(f"GPU tests: findings are in {_findings_path[0]}")
