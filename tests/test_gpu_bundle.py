"""The bundle for a machine without a network: parts of a bounded size, joined again, with every package that is needed."""

import re
import shutil
import subprocess
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from examples.gpu_bundle.__main__ import PART_BYTES, ROOT, Packer, build, wanted_packages
from examples.gpu_bundle.unpack import install, join


THERE = ("torch", "transformers", "accelerate", "peft")


def test_parts_stay_within_their_limit_and_pieces_are_joined_to_the_same_file(tmp_path):
    contents = {"small": b"s" * 30, "large": bytes(range(230)), "last": b"l" * 60}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    packer = Packer(tmp_path / "bundle", limit=100)
    packer.add(tmp_path / "small", "wheels/small")
    packer.add_in_pieces(tmp_path / "large", "model")
    packer.add(tmp_path / "last", "wheels/last")
    assert [part.name for part in packer.parts] == ["part-1", "part-2", "part-3", "part-4"]
    assert [_size(part) for part in packer.parts] == [100, 100, 60, 60]
    pieces = list((tmp_path / "bundle").glob("part-*/model/*"))
    assert sorted(piece.name for piece in pieces) == ["large.1of3", "large.2of3", "large.3of3"]
    assert join([], tmp_path / "bundle") is None
    assert join(pieces[:2], tmp_path / "bundle") is None
    assert join(pieces, tmp_path / "bundle").read_bytes() == contents["large"]


def test_a_file_that_no_part_can_hold_is_refused(tmp_path):
    (tmp_path / "large").write_bytes(bytes(101))
    with pytest.raises(ValueError, match="large has 101 bytes and does not fit into a part of 100"):
        Packer(tmp_path / "bundle", limit=100).add(tmp_path / "large", "wheels/large")


def test_wheels_are_installed_once_and_never_over_a_later_version(tmp_path):
    ours, older = (_wheel(tmp_path, name, version) for name, version in (("exbias_probe", "1.2"), ("numpy", "0.1")))
    site = tmp_path / "site"
    install([ours, older], site)
    assert (site / "exbias_probe.py").is_file()
    assert not (site / "numpy.py").exists()
    (site / "exbias_probe.py").write_text("kept", encoding="utf-8")
    install([ours, older], site)
    assert (site / "exbias_probe.py").read_text(encoding="utf-8") == "kept"


def test_every_package_that_a_carried_one_needs_is_carried_or_there():
    there = set()
    for name in THERE:
        _close(name, there)
    carried = set(map(_canonical, wanted_packages()))
    missing = {(package, needed) for package in carried for needed in _needs(package) if needed not in carried | there}
    assert not missing


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("python3.12") is None, reason="needs Python 3.12")
def test_the_bundle_runs_where_nothing_but_torch_and_transformers_is(tmp_path):
    parts = build(tmp_path / "bundle", ROOT.parent / "shared" / "data", "3.12", "x86_64")
    assert all(_size(part) <= PART_BYTES for part in parts)
    venv = tmp_path / "venv" / "bin" / "python"
    subprocess.run(["python3.12", "-m", "venv", tmp_path / "venv"], check=True)
    packages = ("torch==2.11.0", "transformers==5.17.0", "accelerate", "peft")
    subprocess.run([venv, "-m", "pip", "install", "--quiet", *packages], check=True)
    for name in ("trl_exbias", "examples", "tests", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)

    def run(*arguments: str) -> str:
        command = ["env", f"PYTHON={venv}", f"OUT={tmp_path}", "bash", tmp_path / "bundle" / "run.sh", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    (tmp_path / "bundle" / "part-1").rename(tmp_path / "kept")
    assert "Not all packages are here yet" in run("unpack")
    (tmp_path / "kept").rename(tmp_path / "bundle" / "part-1")
    assert "SmolLM2" in run("unpack")
    assert "skipped" in run("tests")
    run("bench", "--dry_run")
    assert list(tmp_path.glob("*.json"))


def _size(part: Path) -> int:
    return sum(path.stat().st_size for path in part.rglob("*") if path.is_file())


def _wheel(folder: Path, name: str, version: str) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _needs(package: str) -> list[str]:
    markers = {"python_version": "3.12", "python_full_version": "3.12.3", "extra": ""}
    found = map(Requirement, requires(package) or [])
    return [_canonical(r.name) for r in found if r.marker is None or r.marker.evaluate(markers)]


def _close(package: str, found: set[str]) -> None:
    found.add(_canonical(package))
    try:
        needed = _needs(package)
    except PackageNotFoundError:  # for another kind of machine
        return
    for name in needed:
        if name not in found:
            _close(name, found)
