"""
Puts together what has arrived of a bundle: wheels into `bundle/site-packages`, data into `bundle/data`, SmolLM2 into `bundle/cache`.

Runs again after each part and does only what is new. Needs nothing but Python and pip.
"""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path


_PIECE = re.compile(r"(?P<name>.+)\.(?P<number>\d+)of(?P<count>\d+)")


def unpack(bundle: Path) -> Path | None:
    """Installs the wheels, lays out the data, joins the pieces; returns the joined weights where they are whole."""
    parts = sorted(bundle.glob("part-*"))
    # The name matters: dill takes a module for installed by it, and would else put pyarrow itself into a data set's fingerprint.
    install([wheel for part in parts for wheel in sorted(part.glob("wheels/*.whl"))], bundle / "site-packages")
    for part in parts:
        if (part / "data").is_dir():
            shutil.copytree(part / "data", bundle / "data", dirs_exist_ok=True)
    return join([piece for part in parts for piece in part.glob("model/*")], bundle)


def install(wheels: list[Path], site: Path) -> None:
    """Installs into a folder of its own what neither the machine nor the folder has in this version or a later one."""
    site.mkdir(exist_ok=True)
    here = {_canonical(d.name): d.version for d in importlib.metadata.distributions(path=[str(site), *sys.path])}
    missing = []
    for wheel in wheels:
        name, version = wheel.name.split("-")[:2]
        if _key(here.get(_canonical(name), "")) < _key(version):
            missing.append(str(wheel))
    if missing:
        flags = [
            "--quiet",
            "--no-index",
            "--no-deps",
            "--no-compile",
            "--no-cache-dir",
            "--upgrade",
            "--target",
            str(site),
        ]
        subprocess.run([sys.executable, "-m", "pip", "install", *flags, *missing], check=True)


def join(pieces: list[Path], bundle: Path) -> Path | None:
    """The file of these pieces, in the folder `bundle`; `None` while one of them is missing."""
    numbered = {int(_PIECE.fullmatch(piece.name)["number"]): piece for piece in pieces}
    if not numbered:
        return None
    match = _PIECE.fullmatch(next(iter(numbered.values())).name)
    whole = bundle / match["name"]
    if whole.is_file():
        return whole
    if sorted(numbered) != list(range(1, int(match["count"]) + 1)):
        return None
    partial = whole.with_name(f"{whole.name}.partial")
    with open(partial, "wb") as file:
        for number in sorted(numbered):
            file.write(numbered[number].read_bytes())
    partial.rename(whole)
    return whole


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


if __name__ == "__main__":
    found = unpack(Path(sys.argv[1]))
    if found is not None:
        print(found)
