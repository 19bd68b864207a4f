"""`exbias rollouts inspect|diff|export|push`: what a run rolled out, as a table, compared with another's, as a file, on the hub."""

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ExbiasError, UsageError
from ..settings.parser import Parser
from ..settings.recipe import exit_with


if TYPE_CHECKING:
    from datasets import Dataset

    from ..run.rollout_store import RolloutStore


_ITERATION = "iteration-"


def run(argv: list[str]) -> int:
    """The command."""
    args = _parser().parse_args(argv)
    try:
        return args.act(args)
    except (ExbiasError, OSError) as error:
        return exit_with(error)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="exbias rollouts", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="inspect|diff|export|push")
    inspect = commands.add_parser("inspect", help="settings, counts and rates of each iteration, and sample branches")
    inspect.add_argument("run", type=Path, help="run directory")
    inspect.add_argument("--iteration", type=int, help="default: all")
    inspect.add_argument("--num_rows", type=int, default=3, help="sample branches of an iteration (default: 3)")
    inspect.set_defaults(act=_inspect)
    diff = commands.add_parser(
        "diff", help="settings and tokens in which two runs' rollouts differ; status 1 if any do"
    )
    diff.add_argument("runs", type=Path, nargs=2, metavar="RUN")
    diff.add_argument("--iteration", type=int, default=1, help="default: 1")
    diff.add_argument("--num_rows", type=int, default=3, help="differing rows to show (default: 3)")
    diff.set_defaults(act=_diff)
    export = commands.add_parser("export", help="one .jsonl or .parquet file of all branches, with their text")
    export.add_argument("run", type=Path, help="run directory")
    export.add_argument("output", type=Path, help="file to write, .jsonl or .parquet")
    export.add_argument("--iteration", type=int, help="default: all")
    export.set_defaults(act=_export)
    push = commands.add_parser("push", help="the shards and a data-set card, to the hub")
    push.add_argument("run", type=Path, help="run directory")
    push.add_argument("repo", metavar="USER/NAME", help="data set on the hub; made, and private, if it is not there")
    push.add_argument(
        "--public", action="store_true", help="make it public: rollouts may hold parts of the training data"
    )
    push.add_argument("--license", help="for the card")
    push.set_defaults(act=_push)
    return parser


def _inspect(args: argparse.Namespace) -> int:
    tokenizer = _tokenizer(args.run)
    for number, store in _stores(args.run, args.iteration):
        manifest = store.require_manifest()
        header = manifest["header"]
        print(f"iteration {number}: {header['method']}, policy of step {header['policy_step']}")
        if not manifest["complete"]:
            missing = len(store.missing_shards())
            print(f"  not complete: {missing} of {manifest['num_shards']} shards are missing\n")
            continue
        rollouts = store.read()
        kinds = Counter(rollouts["kind"])
        print(f"  {len(rollouts)} branches ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})")
        for name, (total, count) in sorted(manifest["stats"].items()):
            print(f"  {name:<24} {total / count:.4g}" if count else f"  {name:<24} –")
        own = [name for name in header if name not in ("method", "iteration", "policy_step", "policy", "data")]
        print(f"  settings: {', '.join(f'{name}={header[name]!r}' for name in own)}")
        for row in rollouts.select(range(min(args.num_rows, len(rollouts)))):
            print(f"\n  row {row['example_id']}, {row['kind']}: {_text(tokenizer, row['input_ids'])}")
            pairs = zip(row["input_ids"], row["labels"], strict=True)
            changed = [(token, label) for token, label in pairs if label not in (token, -100)]
            for token, label in changed[:5]:
                print(f"    {_text(tokenizer, [token])} → {_text(tokenizer, [label])}")
            if len(changed) > 5:
                print(f"    … {len(changed)} labels that differ from their token in all")
        print()
    return 0


def _diff(args: argparse.Namespace) -> int:
    (_, one), (_, other) = (next(_stores(run, args.iteration)) for run in args.runs)
    differs = False
    headers = [store.require_manifest()["header"] for store in (one, other)]
    for name in dict.fromkeys(itertools.chain(*headers)):
        values = [header.get(name) for header in headers]
        if values[0] != values[1]:
            differs = True
            print(f"{name}: {values[0]!r} and {values[1]!r}")
    branches = [_by_example(store.read()) for store in (one, other)]
    lonely = [len(a.keys() - b.keys()) for a, b in (branches, branches[::-1])]
    shared = sorted(branches[0].keys() & branches[1].keys())
    differing = [key for key in shared if branches[0][key] != branches[1][key]]
    print(
        f"{len(shared)} branches in both, {len(differing)} of them differ; {lonely[0]} in the first alone, "
        f"{lonely[1]} in the second alone"
    )
    tokenizer = _tokenizer(args.runs[0])
    for key in differing[: args.num_rows]:
        texts = [branch[key][0] for branch in branches]
        first = next((j for j, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
        what = f"from token {first} on" if texts[0] != texts[1] else "in their labels"
        print(f"\nrow {key[0]}, {key[1]}, {what}")
        for text in texts:
            print(f"  {_text(tokenizer, text[max(0, first - 8) : first + 24])}")
    return int(differs or bool(differing) or any(lonely))


def _export(args: argparse.Namespace) -> int:
    from datasets import concatenate_datasets

    if args.output.suffix not in (".jsonl", ".parquet"):
        raise UsageError(f"{args.output} must end in .jsonl or .parquet.")
    tokenizer, parts = _tokenizer(args.run), []
    for number, store in _stores(args.run, args.iteration):
        rollouts = store.read()
        parts.append(rollouts.add_column("iteration", [number] * len(rollouts)))
    rows = concatenate_datasets(parts)
    if tokenizer is not None:
        rows = rows.add_column("text", [tokenizer.decode(ids) for ids in rows["input_ids"]])
    write = rows.to_json if args.output.suffix == ".jsonl" else rows.to_parquet
    write(str(args.output))
    print(f"{len(rows)} branches of {len(parts)} iteration{'s'[: len(parts) != 1]}: {args.output}")
    return 0


def _push(args: argparse.Namespace) -> int:
    from ..hub.rollouts_hub import push_rollouts

    print(push_rollouts(args.run, args.repo, private=not args.public, license=args.license))
    return 0


def _stores(run: Path, iteration: int | None) -> "Iterator[tuple[int, RolloutStore]]":
    """The stores of a run, with the numbers of their iterations, in order."""
    from ..run.rollout_store import RolloutStore
    from ..run.run_directory import ROLLOUTS

    folders = [path for path in (run / ROLLOUTS).glob(f"{_ITERATION}*") if path.name[len(_ITERATION) :].isdigit()]
    found = {int(path.name[len(_ITERATION) :]): RolloutStore(path) for path in folders}
    found = {number: store for number, store in sorted(found.items()) if store.manifest is not None}
    if not found:
        raise UsageError(f"{run} holds no rollouts: there is no {ROLLOUTS}/{_ITERATION}1 with a manifest in it.")
    if iteration is not None and iteration not in found:
        raise UsageError(f"{run} has no iteration {iteration}; it has {', '.join(map(str, found))}.")
    yield from ((number, store) for number, store in found.items() if iteration in (None, number))


def _by_example(rollouts: "Dataset") -> dict[tuple[int, str, int], tuple[list[int], list[int]]]:
    """Tokens and labels by example, kind, and the place among branches of both."""
    found: dict[tuple[int, str, int], Any] = {}
    for row in rollouts:
        place = next(n for n in itertools.count() if (row["example_id"], row["kind"], n) not in found)
        found[row["example_id"], row["kind"], place] = (row["input_ids"], row["labels"])
    return found


def _tokenizer(run: Path) -> Any:
    """The tokenizer of the run's model, or of its newest checkpoint; `None` where it has none yet."""
    from transformers import AutoTokenizer

    from ..evaluation.identity import model_folder

    try:
        return AutoTokenizer.from_pretrained(model_folder(str(run)))
    except (OSError, ValueError):
        return None


def _text(tokenizer: Any, ids: list[int]) -> str:
    """Tokens as a line of text, with what would break it escaped; as ids where there is no tokenizer."""
    return str(ids) if tokenizer is None else json.dumps(tokenizer.decode(ids), ensure_ascii=False)
