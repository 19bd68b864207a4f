"""
`make gpu-bundle`: everything that the GPU tests and benchmarks need on a machine without a network, in parts of at most 60 MB.

Such a machine has Python 3.12, torch, transformers, accelerate and peft. The bundle brings the other packages as wheels, the
weights of SmolLM2 in pieces, and the data sets that are there. `bundle/run.sh` uses whichever parts have arrived.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trl_exbias.demo.embedded_model import fetch_gguf


HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PART_BYTES = 60_000_000
#: In this order of value; the folders are those of the data sets' own layout.
DATA = ("gsm8k/train.jsonl", "gsm8k/test.jsonl", "story_domains/*.jsonl")
#: The last one to go: a machine with torch often has it, and it fills a part by itself.
LAST_WHEEL = "pyarrow"
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014")


def build(bundle: Path, data: Path, python_version: str, machine: str) -> list[Path]:
    """
    Writes a new bundle and returns its parts.

    Args:
        bundle (`Path`): The folder to write; what it held is removed.
        data (`Path`): A folder of data sets. Those that it lacks are left out, with a line that says so.
        python_version (`str`): Python's version on the machine that the bundle is for, such as `"3.12"`.
        machine (`str`): Its architecture, such as `"x86_64"`.
    """
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.mkdir(parents=True)
    shutil.copy(HERE / "run.sh", bundle)
    with tempfile.TemporaryDirectory(dir=bundle) as temporary:
        wheels = download_wheels(Path(temporary), python_version, machine)
        last = [wheel for wheel in wheels if wheel.name.startswith(f"{LAST_WHEEL}-")]
        packer = Packer(bundle, PART_BYTES)
        for wheel in (wheel for wheel in wheels if wheel not in last):
            packer.add(wheel, f"wheels/{wheel.name}")
        for path in data_files(data):
            packer.add(path, f"data/{path.relative_to(data)}")
        packer.add_in_pieces(fetch_gguf(Path(temporary)), "model")
        for wheel in last:
            packer.add(wheel, f"wheels/{wheel.name}")
    return packer.parts


def wanted_packages() -> list[str]:
    """The names in `packages.txt`."""
    lines = (HERE / "packages.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def download_wheels(to: Path, python_version: str, machine: str) -> list[Path]:
    """
    One wheel for each line of `packages.txt`, smallest first.

    Raises:
        RuntimeError: if one of them cannot be fetched.
    """
    platforms = [flag for name in _PLATFORMS for flag in ("--platform", f"{name}_{machine}")]
    target = ["--python-version", python_version, "--implementation", "cp", *platforms]
    constraints = ["--constraint", str(ROOT / ".ci" / "constraints.txt")]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(to),
    ]
    done = subprocess.run([*command, *target, *constraints, *wanted_packages()], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"Could not fetch the bundle's wheels:\n{done.stderr.strip()}")
    return sorted(to.glob("*.whl"), key=lambda wheel: wheel.stat().st_size)


def data_files(data: Path) -> Iterator[Path]:
    """The files of [`DATA`] in a folder of data sets."""
    for pattern in DATA:
        found = sorted(data.glob(pattern))
        if not found:
            print(f"{data / pattern} is not there: the benchmarks that read it will not run.", file=sys.stderr)
        yield from found


class Packer:
    """
    Copies files into `part-1`, `part-2`, … of a folder, a new part where the last one is full.

    Args:
        bundle (`Path`): The folder.
        limit (`int`): Bytes of a part.
    """

    def __init__(self, bundle: Path, limit: int):
        self.bundle, self.limit = bundle, limit
        self.parts: list[Path] = []
        self.room = 0

    def add(self, path: Path, name: str) -> None:
        """
        Copies a file to `name` in the current part, or in a new one.

        Raises:
            ValueError: if it is larger than a part.
        """
        size = path.stat().st_size
        if size > self.limit:
            raise ValueError(f"{path.name} has {size:,} bytes and does not fit into a part of {self.limit:,}.")
        if size > self.room:
            self._begin_part()
        target = self.parts[-1] / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        self.room -= size

    def add_in_pieces(self, path: Path, folder: str) -> None:
        """Cuts a file into `folder/NAME.1of3`, `.2of3`, …, which fill what room there is."""
        sizes = self._piece_sizes(path.stat().st_size)
        with open(path, "rb") as file:
            for number, size in enumerate(sizes, start=1):
                if self.room < size:
                    self._begin_part()
                target = self.parts[-1] / folder / f"{path.name}.{number}of{len(sizes)}"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read(size))
                self.room -= size

    def _piece_sizes(self, size: int) -> list[int]:
        sizes, room = [], self.room
        while size:
            sizes.append(min(size, room or self.limit))
            size, room = size - sizes[-1], 0
        return sizes

    def _begin_part(self) -> None:
        self.parts.append(self.bundle / f"part-{len(self.parts) + 1}")
        self.parts[-1].mkdir(parents=True)
        self.room = self.limit


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.gpu_bundle", description=__doc__.strip().splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "bundle", help="the folder to write")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="a folder of data sets")
    parser.add_argument("--python_version", default="3.12", help="of the machine that the bundle is for")
    parser.add_argument("--machine", default="x86_64", help="its architecture")
    options = parser.parse_args()
    for part in build(options.output, options.data, options.python_version, options.machine):
        files = [path for path in part.rglob("*") if path.is_file()]
        print(f"{part}  {sum(path.stat().st_size for path in files) / 1e6:.1f} MB, {len(files)} files")
    print(f"Carry them, and {options.output / 'run.sh'}, next to a checkout, and run: bash bundle/run.sh")


if __name__ == "__main__":
    main()
