"""Perplexity, free-running cross-entropy and the gap, as `exbias measure` has them, as figures that can be compared."""

import hashlib
import math
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bootstrap import bootstrap_interval
from ..figures import Figure, token_mean
from ..work import Work
from .suite import Suite


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _figures(work: Work) -> dict[str, Figure]:
    model, tokenizer, options = work.subject.model, work.subject.tokenizer, work.options
    ids, contexts = [item.id for item in work.items], [item.ids for item in work.items]
    if work.cuts is not None:
        horizons = work.cuts.horizons
        nll, keys, texts = _of_documents(work, model, tokenizer)
        sums, counts = nll, np.ones(len(nll))
    else:
        answers = [item.references[0] for item in work.items]
        responses = [item.response for item in work.items]
        horizons, keys, texts = [response[: options.horizon] for response in responses], ids, answers
        sums, counts = _of_responses(model, contexts, responses)
    settings = {**work.settings(), "horizon": options.horizon, "num_samples": options.num_samples, "seed": options.seed}
    # Per token says nothing across tokenizers: figures of others are not to be compared.
    per_token = {**settings, "tokens": _digest([*contexts, *horizons])}
    entropy = token_mean("cross_entropy", keys, sums, counts, per_token)
    num_bytes = sum(len(text.encode()) for text in texts)
    scale = counts.sum() / (num_bytes * math.log(2))
    return {
        "cross_entropy": entropy,
        "perplexity": exponential(entropy, "perplexity"),
        "bits_per_byte": _scaled(entropy, "bits_per_byte", scale, settings),
        **_free_running(work, ids, contexts, horizons, per_token),
    }


def _of_documents(
    work: Work, model: Any, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[np.ndarray, list[str], list[str]]:
    """Every stride-th token after exactly `context_length` true ones: its NLL, its place and its text."""
    from ...methods.dad_dagger.trajectories import starts
    from ..perplexity import sliding_nll

    assert work.cuts is not None, "documents are cut"
    length, stride = work.options.context_length, work.cuts.stride
    documents = [tokenizer(text)["input_ids"] for text in work.rows.dataset["text"]]
    places = [(i, start) for i, ids in enumerate(documents) for start in starts(len(ids), length + 1, stride)]
    nll = sliding_nll(model, documents, length, stride, work.subject.batch_tokens)
    texts = [tokenizer.decode([documents[i][start + length]]) for i, start in places]
    return nll, [f"{i}:{start}" for i, start in places], texts


def _of_responses(model: Any, contexts: list[list[int]], responses: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    from ...core.likelihood import label_nll

    rows = label_nll(model, contexts, responses, responses, 0)
    return np.array([sum(row) for row in rows]), np.array([float(len(row)) for row in rows])


def _free_running(
    work: Work, ids: Any, contexts: list[list[int]], horizons: list[list[int]], settings: dict[str, Any]
) -> dict[str, Figure]:
    from tqdm.auto import tqdm

    from ..free_running import free_runs

    options = work.options
    with tqdm(total=len(contexts), desc="Free running", unit="start", leave=False, file=sys.stderr) as bar:
        runs = free_runs(
            work.subject.model,
            contexts,
            horizons,
            options.num_samples,
            options.seed,
            max_batch_tokens=work.subject.batch_tokens,
            on_progress=lambda starts, tokens: bar.update(starts),
        )
    present = (~np.isnan(runs.teacher_forced)).astype(float)
    columns = {
        "teacher_forced": runs.teacher_forced,
        "free_running": runs.free_running,
        "gap": runs.free_running - runs.teacher_forced,
    }
    for name, values in columns.items():
        low, high = bootstrap_interval(values, present)
        ends = {"low": low.tolist(), "high": high.tolist()}
        work.curves[name] = {"mean": np.nanmean(values, axis=0).tolist(), **ends}
    found = {
        name: token_mean(name, ids, np.nansum(values, axis=1), present.sum(axis=1), settings)
        for name, values in columns.items()
    }
    # They fall also where a method harms (docs/bench.md): lower does not mean better.
    return found | {name: replace(found[name], higher_is_better=None) for name in ("free_running", "gap")}


def exponential(entropy: Figure, name: str) -> Figure:
    """A perplexity. No prompt has a share of it: compare cross-entropies."""
    mean, low, high = (math.exp(value) for value in (entropy.mean, entropy.low, entropy.high))
    return Figure(
        name, mean, low, high, entropy.n, higher_is_better=entropy.higher_is_better, settings=entropy.settings
    )


def _scaled(figure: Figure, name: str, factor: float, settings: dict[str, Any]) -> Figure:
    return Figure(
        name,
        figure.mean * factor,
        figure.low * factor,
        figure.high * factor,
        figure.n,
        higher_is_better=False,
        settings=settings,
        per_prompt={key: value * factor for key, value in figure.per_prompt.items()},
    )


def _digest(sequences: list[list[int]]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for sequence in sequences:
        digest.update(f"{sequence};".encode())
    return digest.hexdigest()


SUITE = Suite(name="likelihood", figures=_figures, sampling=None)
