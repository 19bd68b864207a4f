"""A run's rollouts as a data set on the hub: the shards as they are, and a card that says what they are."""

import json
import logging
from importlib import resources
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import CommitOperationAdd, DatasetCard, DatasetCardData, HfApi, ModelCard

from ..core.errors import UsageError
from ..run.rollout_store import MANIFEST, SHARDS, RolloutStore
from ..run.run_directory import ROLLOUTS, RUN_FILE, redact
from .markdown import hub_link, plain, table


logger = logging.getLogger(__name__)

_MEANINGS = {
    "example_id": "row of the training data",
    "kind": "kind of the branch, as the method names it",
    "input_ids": "tokens of the branch: the policy's own, or its own and gold ones mixed",
    "labels": "token that each position was trained to predict; -100: none",
    "weight": "factor on the loss of its labels",
    "token_weights": "factor on the loss of each label, where they differ",
    "score": "what the method computed of the branch once, before training on it",
}
_OF_AN_ITERATION = ("method", "iteration", "policy_step", "policy", "data")


def rollouts_card(run_dir: str | Path, repo_id: str | None = None, license: str | None = None) -> DatasetCard:
    """
    The card of a run's rollouts: columns, a configuration for each iteration, how they were drawn, rates, versions.

    Args:
        run_dir (`str` or `Path`): A run directory with at least one complete iteration of rollouts.
        repo_id (`str`, *optional*): Where they will be, for the example of how to load them.
        license (`str`, *optional*): The hub's name of a licence; `"unknown"` where it is not given.

    Raises:
        ValueError: if there are no complete rollouts, or a shard is not what was written.
    """
    return _card(Path(run_dir), _read(Path(run_dir)), repo_id, license)


def push_rollouts(
    run_dir: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    license: str | None = None,
    api: HfApi | None = None,
) -> str:
    """
    Uploads a run's complete rollouts and their card, in one commit.

    Every shard is checked against its manifest's hash first. What an earlier push left under the same names is replaced.

    Args:
        run_dir (`str` or `Path`): The run directory.
        repo_id (`str`): The data set on the hub; made if it is not there.
        private (`bool`, *optional*, defaults to `True`):
            Whether a new data set is private: rollouts may hold parts of the training data.
        license (`str`, *optional*): For the card.
        api ([`~huggingface_hub.HfApi`], *optional*): With another endpoint or token than the ones you are logged in with.

    Returns:
        `str`: The address of the data set.

    Raises:
        ValueError: if there are no complete rollouts, or a shard is not what was written.
    """
    api, run_dir = api or HfApi(), Path(run_dir)
    iterations = _read(run_dir)
    card = _card(run_dir, iterations, repo_id, license)
    uploads = [CommitOperationAdd("README.md", card.content.encode())]
    for name in iterations:
        folder = run_dir / ROLLOUTS / name
        uploads += [
            CommitOperationAdd(f"{name}/{path.name}", path)
            for path in [folder / MANIFEST, *sorted(folder.glob(SHARDS))]
        ]
    made = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    api.create_commit(
        made.repo_id, uploads, commit_message=f"Rollouts of {len(iterations)} iterations", repo_type="dataset"
    )
    logger.info(f"{len(uploads)} files uploaded to {made}.")
    return str(made)


def _read(run_dir: Path) -> dict[str, tuple[dict[str, Any], Dataset]]:
    """Manifest and rows of every complete iteration, in order."""
    folders = [path for path in (run_dir / ROLLOUTS).glob("iteration-*") if path.name.split("-", 1)[1].isdigit()]
    found = {}
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[1])):
        store = RolloutStore(folder)
        manifest = store.manifest
        if manifest is not None and store.is_complete:
            found[folder.name] = (manifest, store.read())
        else:
            logger.warning(f"{folder} is left out: its rollouts are not complete.")
    if not found:
        raise UsageError(f"{run_dir} holds no complete rollouts (a folder {ROLLOUTS}/iteration-<k> with a {MANIFEST}).")
    return found


def _card(
    run_dir: Path, iterations: dict[str, tuple[dict[str, Any], Dataset]], repo_id: str | None, license: str | None
) -> DatasetCard:
    run = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8")) if (run_dir / RUN_FILE).is_file() else {}
    headers = {name: redact(manifest["header"]) for name, (manifest, _) in iterations.items()}
    (first, header), (_, rows) = next(iter(headers.items())), next(iter(iterations.values()))
    method = str(header.get("method", run.get("method", "an iterative method")))
    num_rows = sum(len(rows) for _, rows in iterations.values())
    title = f"{method} rollouts: {(repo_id or run_dir.resolve().name).split('/')[-1]}"
    base_model = _base_model(run_dir)
    data = DatasetCardData(
        license=license or "unknown",
        pretty_name=title,
        tags=["trl-exbias", "rollouts", method.lower()],
        size_categories=_size_category(num_rows),
        configs=[
            {"config_name": name, "data_files": f"{name}/{SHARDS}", **({"default": True} if name == first else {})}
            for name in iterations
        ],
    )
    return DatasetCard.from_template(
        data,
        template_str=resources.files("trl_exbias.templates").joinpath("dataset_card.md.jinja").read_text("utf-8"),
        title=plain(title),
        method=plain(method),
        base_model=hub_link(base_model) if base_model else None,
        repo_id=json.dumps(repo_id or str(run_dir.resolve().name)),
        first_config=json.dumps(first),
        columns=table(
            ["column", "type", "meaning"],
            [[f"`{n}`", plain(_type(f)), _MEANINGS.get(n, "")] for n, f in rows.features.items()],
            numbers=False,
        ),
        iterations=table(
            ["configuration", "branches", "policy step", "policy"],
            [
                [name, str(len(rows)), plain(headers[name].get("policy_step")), plain(headers[name].get("policy"))]
                for name, (_, rows) in iterations.items()
            ],
        ),
        settings=[(plain(k), plain(v)) for k, v in header.items() if k not in _OF_AN_ITERATION and v is not None]
        + [("identity of the data", plain(header.get("data")))],
        rates=_rates({name: manifest["stats"] for name, (manifest, _) in iterations.items()}),
        versions=[(plain(k), plain(v)) for k, v in run.get("versions", {}).items()],
    )


def _rates(stats: dict[str, dict[str, list[float]]]) -> str:
    """What each iteration's log says of its rollouts: totals over counts."""
    names = list(dict.fromkeys(name for found in stats.values() for name in found))
    rows = [
        [iteration, *(f"{found[n][0] / found[n][1]:.4g}" if found.get(n, [0, 0])[1] else "–" for n in names)]
        for iteration, found in stats.items()
    ]
    return table(["configuration", *map(plain, names)], rows)


def _base_model(run_dir: Path) -> str | None:
    card = run_dir / "README.md"
    return ModelCard.load(card).data.get("base_model") if card.is_file() else None


def _type(feature: Any) -> str:
    inner = getattr(feature, "feature", None)
    return f"list of {inner.dtype}" if inner is not None else feature.dtype


def _size_category(num_rows: int) -> str:
    for bound, name in ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")):
        if num_rows < bound:
            return name
    return "n>1M"
