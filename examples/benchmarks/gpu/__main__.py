"""
What a GPU does with this package: `make bench-gpu`, or `python -m examples.benchmarks.gpu`.

Every part is a process of its own with a time limit of its own and writes DIR/<part>.json as it goes, and what it prints into
DIR/<part>.log: a run cut off anywhere keeps what it has, and the same command continues. `python -m examples.benchmarks.gpu.table DIR` puts the figures into
docs/benchmarks.md.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

from .parts import PARTS, ROOT, Part
from .results import FINISHED


def run(parts: list[Part], output: Path, limit: float, dry_run: bool, fresh: bool) -> bool:
    """
    Runs the parts one after another, none past `limit` seconds from now; returns whether none of them failed.

    A part that is finished, or that lacks what it needs, is left out with a line that says so.
    """
    deadline, ok = time.monotonic() + limit, True
    for part in parts:
        path = output / f"{part.name}.json"
        if fresh:
            for old in (path, path.with_suffix(".log")):
                old.unlink(missing_ok=True)
        if not dry_run and (missing := part.missing()) is not None:
            _say(part, f"left out: {missing}")
            continue
        if _is_finished(path):
            _say(part, f"finished before: {path}")
            continue
        seconds = min(part.seconds, deadline - time.monotonic())
        if seconds < 1:
            _say(part, "no time left; the same command continues")
            continue
        _say(part, f"{part.about}, {seconds:.0f} s at most")
        status = run_part(part, path, seconds, dry_run)
        _say(
            part,
            {0: "finished", None: "stopped at its limit; the same command continues"}.get(status, f"failed ({status})"),
        )
        ok &= status in (0, None)
    return ok


def run_part(part: Part, path: Path, seconds: float, dry_run: bool) -> int | None:
    """The exit status of a part; `None` where it was stopped at its limit."""
    command = [sys.executable, "-u", "-m", part.module, str(path), *(["--dry_run"] if dry_run else [])]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipe)
    copying = threading.Thread(target=_tee, args=(process.stdout, path.with_suffix(".log")), daemon=True)
    copying.start()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # With all that it has started, also when this process is told to stop.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        copying.join(timeout=5)


def _tee(output: TextIO, log: Path) -> None:
    """Copies lines to the terminal and to the end of the log, each at once."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        for line in output:
            file.write(line)
            file.flush()
            print(line, end="", flush=True)


def _is_finished(path: Path) -> bool:
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get(FINISHED, False)


def _say(part: Part, text: str) -> None:
    print(f"[{part.name}] {text}", flush=True)


def main(argv: list[str] | None = None) -> int:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(
        prog="python -m examples.benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "bench-gpu", help="folder of the JSON files")
    parser.add_argument("--parts", nargs="+", choices=names, default=names, help="which to run (default: all)")
    parser.add_argument("--limit", type=float, default=540, help="seconds for all of them together (default: 540)")
    parser.add_argument("--dry_run", action="store_true", help="every part at toy size on a CPU, through the same code")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
    options = parser.parse_args(argv)
    chosen = [part for part in PARTS if part.name in options.parts]
    ok = run(chosen, options.output.resolve(), options.limit, options.dry_run, options.fresh)
    print(f"Results: {options.output}", flush=True)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
