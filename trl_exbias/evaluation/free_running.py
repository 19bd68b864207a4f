"""Free runs from true contexts: a model reads the context once, then goes along the truth and along its own samples."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..core.batching import groups_of_equal_length, run_in_batches
from ..core.model_check import check_model
from ..core.modeling import LMHead, inference
from ..core.reading import logit_chunks
from ..core.token_ids import TokenIds
from ..rollouts import SamplingOptions
from ..rollouts.local.cache_probe import Rows, rows_of, takes_own_cache
from ..rollouts.local.sessions import DenseSession, RaggedSession, RereadSession
from ..rollouts.noise import derive_seed
from ..rollouts.sampling import choose_tokens


@dataclass(frozen=True)
class FreeRuns:
    """
    What was measured at each start and horizon step; nats. Entries after the end of a horizon are NaN.

    Args:
        teacher_forced (`np.ndarray` of shape `(starts, steps)`): −log p_θ(true token | true prefix).
        free_running (`np.ndarray` of shape `(starts, steps)`): The same given the model's own tokens since the start, mean
            over samples.
        kl_gold, kl_own (`np.ndarray` of shape `(starts, steps)`, *optional*): KL(p* ‖ p_θ) on true and on own prefixes.
    """

    teacher_forced: np.ndarray
    free_running: np.ndarray
    kl_gold: np.ndarray | None = None
    kl_own: np.ndarray | None = None


def free_runs(
    model: nn.Module,
    contexts: Sequence[TokenIds],
    horizons: Sequence[TokenIds],
    num_samples: int,
    seed: int,
    teacher: nn.Module | None = None,
    vocab_size: int | None = None,
    max_batch_tokens: int = 16384,
    on_progress: Callable[[int, int], object] = lambda starts, tokens: None,
) -> FreeRuns:
    """
    Lets a model run freely from true contexts and scores the true tokens along the way.

    Every context is encoded once; after it come one row along the true tokens and `num_samples` along samples of the model
    (temperature 1). The distribution that a sample is drawn from is the one that the true token is scored under, so that
    the first step is the same for both by construction.

    Args:
        model, teacher ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Left as they were found.
        contexts, horizons (`Sequence[Sequence[int]]`): True tokens; one entry a start.
        num_samples (`int`): Free runs from each start.
        seed (`int`): Seed of the samples; keyed by start and step, so that batches change nothing.
        vocab_size (`int`, *optional*): Logits that model and teacher share.
    """
    steps = max(map(len, horizons))
    shape = (len(contexts), steps)
    runs = FreeRuns(*(np.full(shape, np.nan) for _ in range(2 if teacher is None else 4)))
    models = [reader for reader in (model, teacher) if reader is not None]
    for reader in models:
        check_model(reader)

    def run(batch: list[int]) -> None:
        longest = max(len(contexts[i]) for i in batch) + steps
        groups = [batch]
        if any(rows_of(reader, longest) is Rows.ALIKE for reader in models):
            # Without a mask of our own there can be no padding: only contexts of the same length go together.
            groups = groups_of_equal_length(batch, [len(context) for context in contexts])
        for group in groups:
            _run_group(runs, group, models, contexts, horizons, num_samples, seed, vocab_size)
            on_progress(len(group), sum(len(horizons[i]) for i in group) * (num_samples + 1))

    rows = num_samples + 1
    with inference(model), inference(teacher) if teacher is not None else contextlib.nullcontext():
        run_in_batches(run, [len(c) + rows * len(h) for c, h in zip(contexts, horizons, strict=True)], max_batch_tokens)
    return runs


def _run_group(
    runs: FreeRuns,
    group: list[int],
    models: list[nn.Module],
    contexts: Sequence[TokenIds],
    horizons: Sequence[TokenIds],
    num_samples: int,
    seed: int,
    vocab_size: int | None,
) -> None:
    """One batch of starts, in lockstep: each row of the batch is a start going along the truth or along a sample."""
    heads = [LMHead(reader) for reader in models]
    # A token that the teacher does not have could not be read by it.
    excluded = () if vocab_size is None else tuple(range(vocab_size, heads[0].vocab_size))
    seeds = [derive_seed(seed, "free-run", s) for s in range(num_samples)]
    options = [SamplingOptions(seed=own, excluded_token_ids=excluded) for own in seeds]
    read, longest = [list(contexts[i]) for i in group], max(len(horizons[i]) for i in group)
    sessions = [_session(reader, read, longest) for reader in models]
    hidden = [session.prefill(read) for session in sessions]
    # Row r of the batch continues from start `start[r]`; rows of the truth first, then those of each sample.
    start, lane = list(range(len(group))), [0] * len(group)
    for step in range(runs.teacher_forced.shape[1]):
        alive = [place for place, r in enumerate(start) if len(horizons[group[r]]) > step]
        if not alive:
            return
        truth = torch.tensor([horizons[group[start[place]]][step] for place in alive])
        nll, kl = _score(heads, [states[alive] for states in hidden], truth, vocab_size)
        for place, value, divergence in zip(alive, nll, kl, strict=True):
            i = group[start[place]]
            _record(runs, i, step, lane[place], step == 0, num_samples, value, divergence)
        going = [place for place in alive if len(horizons[group[start[place]]]) > step + 1]
        if not going:
            return
        if step == 0:
            # From here each context has its lanes; the cache is copied, the context is not read again.
            rows = [(place, k) for k in range(num_samples + 1) for place in going]
        else:
            rows = [(place, lane[place]) for place in going]
        keep = [place for place, _ in rows]
        tokens = [0] * len(rows)
        for k in range(num_samples + 1):
            mine = [j for j, (_, row_lane) in enumerate(rows) if row_lane == k]
            if k == 0:
                for j in mine:
                    tokens[j] = horizons[group[start[keep[j]]]][step]
                continue
            states = hidden[0][[keep[j] for j in mine]]
            ids = [group[start[keep[j]]] for j in mine]
            for j, token in zip(
                mine, choose_tokens(heads[0], states, options[k - 1], ids, [step] * len(mine)), strict=True
            ):
                tokens[j] = token
        is_same = keep == [*range(len(start))]
        start, lane = [start[place] for place in keep], [k for _, k in rows]
        positions = [len(contexts[group[r]]) + step for r in start]
        hidden = []
        for session in sessions:
            if not is_same:  # else the whole cache would be copied
                session.keep(keep)
            hidden.append(session.step(torch.tensor(tokens).unsqueeze(1), positions)[:, 0])


def _record(
    runs: FreeRuns, i: int, step: int, lane: int, shared: bool, num_samples: int, nll: float, kl: float
) -> None:
    """The first step is the truth's and every sample's alike; later ones are means over the samples."""
    if lane == 0:
        runs.teacher_forced[i, step] = nll
        if runs.kl_gold is not None:
            runs.kl_gold[i, step] = kl
    if lane > 0 or shared:
        for array, value in ((runs.free_running, nll), (runs.kl_own, kl)):
            if array is not None:
                share = value if shared else value / num_samples
                array[i, step] = share if np.isnan(array[i, step]) else array[i, step] + share


def _score(
    heads: list[LMHead], hidden: list[torch.Tensor], truth: torch.Tensor, vocab_size: int | None
) -> tuple[list[float], list[float]]:
    """NLL of the true tokens, and KL(teacher ‖ model) where there is a teacher (else zeros)."""
    nll, kl = [], []
    truth = truth.to(hidden[0].device)
    for rows in logit_chunks(hidden[0], heads[0].vocab_size):
        logits = heads[0](hidden[0][rows])
        log_probs = logits.log_softmax(-1)
        nll += (-log_probs.gather(-1, truth[rows].unsqueeze(-1)).squeeze(-1)).tolist()
        if len(heads) == 1:
            kl += [0.0] * len(log_probs)
            continue
        if vocab_size is not None and vocab_size < logits.size(-1):
            log_probs = logits[:, :vocab_size].log_softmax(-1)
        shared = log_probs.size(-1)
        teacher = heads[1](hidden[1][rows])[:, :shared].log_softmax(-1).to(log_probs.device)
        kl += (teacher.exp() * (teacher - log_probs)).sum(-1).tolist()
    return nll, kl


def _session(model: nn.Module, contexts: list[list[int]], horizon: int) -> DenseSession | RaggedSession | RereadSession:
    longest = max(map(len, contexts)) + horizon
    if len({len(context) for context in contexts}) == 1 and takes_own_cache(model):
        return DenseSession(model)
    if rows_of(model, longest) is Rows.RAGGED:
        return RaggedSession(model, 0, len(contexts), longest)
    return RereadSession(model, 0, longest)
