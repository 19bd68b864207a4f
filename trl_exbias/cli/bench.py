"""`exbias bench`: does a method cure? Tasks whose true distribution is known, tiny models, equal tokens; see `docs/bench.md`."""

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import ExbiasError
from ..settings.parser import Parser
from ..settings.recipe import exit_with


if TYPE_CHECKING:
    from ..bench.plan import Bench, Cell


_DESCRIPTION = """\
Trains every method from the same starting models for as many tokens, on tasks whose true distribution is known, and reports
what each changes. No model and no data are needed. Called again, it continues where it was stopped."""
_EPILOG = """\
A method of your own takes part:
  exbias bench --method 'my_methods:MyTrainer' --method 'my_methods:MyTrainer beta=0.5' --method bash-0.5"""


def run(argv: list[str]) -> int:
    """The command."""
    options = _parser().parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # A method of a user's own lies where the command is called.
    sys.path.insert(0, os.getcwd())
    from ..bench.plan import plan_bench

    try:
        bench = plan_bench(options.output, options.task, options.method, options.seeds, options.quick, options.tokens)
    except ExbiasError as error:
        return exit_with(error)
    from ..bench.run import run_bench

    began = time.perf_counter()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    arms = ", ".join(arm.name for arm in bench.arms)
    print(f"{len(bench.tasks)} tasks × {bench.sizes.seeds} seeds × {len(bench.arms)} methods ({arms})", flush=True)

    def on_cell(cell: "Cell", done: int, total: int) -> None:
        minutes = (time.perf_counter() - began) / 60
        print(f"[{done}/{total}] {cell.task}, seed {cell.seed}; {minutes:.1f} min", flush=True)
        _report(bench)

    try:
        run_bench(bench, options.workers, on_cell)
    except KeyboardInterrupt:
        print("Stopped; the same command continues.", file=sys.stderr)
        return 130
    for path in _report(bench):
        print(f"Written: {path}")
    return 0


def _report(bench: "Bench") -> list[Path]:
    from ..bench.report import write_report

    return write_report(bench.results(), bench.starts(), bench.output)


def _parser() -> argparse.ArgumentParser:
    from ..bench.names import METHODS, TASK_NAMES

    parser = Parser(
        prog="exbias bench",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/bench"), help="folder of results and report (default: runs/bench)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="two tasks, five methods, two seeds: about 3 minutes on 2 cores"
    )
    parser.add_argument(
        "--task", action="append", metavar="NAME", help=f"a task; repeatable (default: all): {', '.join(TASK_NAMES)}"
    )
    parser.add_argument(
        "--method",
        action="append",
        metavar="NAME",
        help=f"a method, by name or as `module:Trainer setting=value …`; repeatable (default: all): {', '.join(METHODS)}",
    )
    parser.add_argument("--seeds", type=int, help="repetitions (default: 5; quick: 2)")
    parser.add_argument(
        "--tokens", type=int, help="tokens that every method consumes from its start (default: 600000; quick: 400000)"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes side by side (default: one a core)"
    )
    return parser
