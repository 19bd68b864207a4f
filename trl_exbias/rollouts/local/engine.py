"""Rolls out with the training model itself, in place: no second copy of the weights, the loss's own numerics.

`mix` is a sequential algorithm (each sampled token conditions on the mixed prefix) computed in parallel. With the noise
of every position fixed in advance, the sampled sequence is the fixed point of "replace each sampled token by the
argmax of its noisy logits" (Wiggers & Hoogeboom, 2020): start from the gold response, which is a very good guess where
the policy is a good model of the data, and run windows of it through the model. Everything before the first token that
changes is settled, for good and in the KV cache; the row continues from there with the changed guesses. The result is
the sequential sample, token for token.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...core.batching import READING_PADDING, groups_of_equal_length, run_in_batches
from ...core.errors import UsageError
from ...core.model_check import check_model
from ...core.modeling import LMHead, inference, position_limit
from ...core.reading import most_probable, pad_right, read_along
from ...core.token_ids import TokenIds, check_prompts
from ..engine import SamplingOptions, check_mix
from ..sampling import Prefixes, choose_tokens, draws_after
from .cache_probe import Rows, rows_of
from .forward_cost import forward_overhead_tokens
from .scripts import FreeRunning, Mixing
from .sessions import DenseSession, RaggedSession, RereadSession


# A batch has as many slots as its longest rows leave room for. Rows that need less than this share of their room wait for a batch
# with more slots.
_REFILL_SHARE = 0.75
_SWEEP_WIDTHS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048)


class TransformersEngine:
    """
    A [`RolloutEngine`] around a model that is already in memory, such as the one being trained.

    The model is put into evaluation mode for each call and left as it was found, also after an exception.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy.
        pad_token_id (`int`):
            Any valid token id; padding is never seen by a real token.
        max_batch_tokens (`int`, *optional*, defaults to `16384`):
            Tokens of one batch with padding (prompt and room for the response). Halved by itself when memory runs out.
        autocast (`Callable`, *optional*):
            Returns the context manager of the training's mixed precision, e.g. `accelerator.autocast`.
        on_progress (`Callable[[int, int], None]`, *optional*):
            Called with the number of sequences finished and of tokens produced since the last call.

    Example:

    ```python
    >>> engine = TransformersEngine(model, pad_token_id=tokenizer.pad_token_id)
    >>> engine.sample([[1, 2, 3]], SamplingOptions(max_new_tokens=5, stop_token_ids=(tokenizer.eos_token_id,)))
    ```
    """

    def __init__(
        self,
        model: nn.Module,
        pad_token_id: int,
        max_batch_tokens: int = 16384,
        autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        on_progress: Callable[[int, int], None] | None = None,
    ):
        self.model = model
        self.pad_token_id = pad_token_id
        self.max_batch_tokens = max_batch_tokens
        self.autocast = autocast
        self.on_progress = on_progress or (lambda sequences, tokens: None)
        self.head = LMHead(model)
        # How often the tokens checked so far had to be changed: where a window is likely to break off.
        self._checked, self._changed = 20, 2

    # The three verbs

    def sample(
        self, prompts: Sequence[TokenIds], options: SamplingOptions, example_ids: Sequence[int] | None = None
    ) -> list[list[int]]:
        ids = check_prompts(prompts, example_ids=example_ids)
        out: list[list[int]] = [[] for _ in prompts]
        lengths = [len(prompt) + options.max_new_tokens for prompt in prompts]
        # The order of the batches: what one of them leaves unfinished comes first in what is left.
        order = sorted(range(len(prompts)), key=lambda row: (-lengths[row], row))

        def run(batch: list[int]) -> None:
            if all(row in self._reported for row in batch):
                return  # an earlier batch drew them in the slots of its finished rows
            unfinished = [row for row in order if row not in self._reported]
            # As much room as the batch would have taken: its longest rows may be finished.
            slots = len(batch) * lengths[batch[0]] // lengths[unfinished[0]]
            rows, others = unfinished[:slots], unfinished[slots:]
            waiting = [row for row in others if lengths[row] >= _REFILL_SHARE * lengths[rows[0]]]
            self._decode(rows, prompts, FreeRunning(options), options, ids, out, waiting)

        self._run(run, lengths, prompts)
        return out

    def mix(
        self,
        prompts: Sequence[TokenIds],
        references: Sequence[TokenIds],
        masks: Sequence[Sequence[bool]],
        options: SamplingOptions,
        example_ids: Sequence[int] | None = None,
    ) -> list[list[int]]:
        ids, sampled = check_mix(prompts, references, masks, example_ids)
        out = [list(reference) for reference in references]
        # A row without a sampled position is its reference, and nothing after the last one needs a forward.
        rows_to_run = [row for row, positions in enumerate(sampled) if positions]

        def run(batch: list[int]) -> None:
            rows = [rows_to_run[i] for i in batch]
            length = max(len(prompts[row]) + sampled[row][-1] for row in rows)
            if rows_of(self.model, length) is not Rows.ALIKE:
                self._sweep(rows, prompts, references, sampled, options, ids, out)
            else:
                self._decode(rows, prompts, Mixing(references, sampled), options, ids, out)

        self.on_progress(len(prompts) - len(rows_to_run), 0)
        self._run(run, [len(prompts[row]) + sampled[row][-1] + 1 for row in rows_to_run], prompts)
        return out

    def label(self, contexts: Sequence[TokenIds], continuations: Sequence[TokenIds]) -> list[list[int]]:
        check_prompts(contexts, continuations, example_ids=None)
        out: list[list[int]] = [[] for _ in contexts]
        rows_to_run = [row for row, continuation in enumerate(continuations) if len(continuation)]

        def run(batch: list[int]) -> None:
            rows = [rows_to_run[i] for i in batch]
            hidden = read_along(
                self.model, [contexts[row] for row in rows], [continuations[row] for row in rows], self.pad_token_id
            )
            labels = most_probable(self.head, hidden).tolist()
            for row in rows:
                out[row], labels = labels[: len(continuations[row])], labels[len(continuations[row]) :]
                self._report(row, len(out[row]))

        lengths = [len(contexts[row]) + len(continuations[row]) - 1 for row in rows_to_run]
        self._run(run, lengths, contexts, READING_PADDING)
        return out

    # Decoding one token at a time

    def _decode(
        self,
        rows: list[int],
        prompts: Sequence[TokenIds],
        script: Any,
        options: SamplingOptions,
        ids: Sequence[int],
        out: list[list[int]],
        waiting: Sequence[int] = (),
    ) -> None:
        """
        Grows the rows of a batch token by token; `script` says which token is forced and when a row ends. Rows that are
        `waiting`, none longer than the longest of `rows`, take the slots of finished ones if the model can do that.
        """
        total = max(len(prompts[row]) + script.max_length(row) for row in rows)
        if rows_of(self.model, total) is not Rows.ALIKE:
            session = self._any_positions(len(rows), total)
            queue = deque(waiting if isinstance(session, RaggedSession) else ())
            self._decode_together([*rows], queue, prompts, script, options, ids, out, session)
            return
        # Without a mask of our own there can be no padding: only prompts of the same length go together.
        for group in groups_of_equal_length(rows, [len(prompt) for prompt in prompts]):
            self._decode_together(group, deque(), prompts, script, options, ids, out, DenseSession(self.model))

    def _decode_together(
        self,
        rows: list[int],
        waiting: deque[int],
        prompts: Sequence[TokenIds],
        script: Any,
        options: SamplingOptions,
        ids: Sequence[int],
        out: list[list[int]],
        session: Any,
    ) -> None:
        responses: dict[int, list[int]] = {row: [] for row in rows}
        last = session.prefill([prompts[row] for row in rows])
        in_cache, places = [*rows], [*range(len(rows))]
        while True:
            chosen = self._next_tokens(rows, last, places, prompts, responses, script, options, ids)
            for row, token in zip(rows, chosen, strict=True):
                responses[row].append(token)
            ended, going = script.ended(rows, [responses[row] for row in rows]), []
            for row, place, is_last in zip(rows, places, ended, strict=True):
                if is_last:
                    # Assigned whole, once: a batch that runs out of memory is run again from the start.
                    out[row] = script.complete(row, responses[row])
                    self._report(row, len(responses[row]))
                else:
                    going.append((row, place))
            if waiting and len(going) <= (1 - session.idle_share) * len(in_cache):
                free = sorted({*range(len(in_cache))} - {place for _, place in going})
                started = [(waiting.popleft(), place) for place in free[: len(waiting)]]
                session.restart([place for _, place in started], [prompts[row] for row, _ in started])
                for row, place in started:
                    in_cache[place], responses[row] = row, []
                going = sorted([*going, *started], key=lambda row_and_place: row_and_place[1])
            if not going:
                return
            rows, places = map(list, zip(*going, strict=True))
            if len(rows) < len(in_cache) and len(rows) <= (1 - session.idle_share) * len(in_cache):
                session.keep(places)
                in_cache, places = [*rows], [*range(len(rows))]
            # A row that has ended and is not dropped yet reads its last token again; one that starts has its prompt's left to read.
            tokens = torch.tensor([[(responses[row] or prompts[row])[-1]] for row in in_cache])
            starts = [len(prompts[row]) + len(responses[row]) - 1 for row in in_cache]
            last = session.step(tokens, starts)[:, 0]

    def _next_tokens(
        self,
        rows: list[int],
        last: torch.Tensor,
        places: list[int],
        prompts: Sequence[TokenIds],
        responses: Mapping[int, Sequence[int]],
        script: Any,
        options: SamplingOptions,
        ids: Sequence[int],
    ) -> list[int]:
        """A token for each row; its hidden state stands in `last` at its place."""
        tokens = [script.forced(row, len(responses[row])) for row in rows]
        free = [i for i, token in enumerate(tokens) if token is None]
        keys = [ids[rows[i]] for i in free], [len(responses[rows[i]]) for i in free]
        hidden = last[[places[i] for i in free]]
        prefixes = None
        if options.repetition_penalty != 1:
            before = {i: [*prompts[rows[i]], *responses[rows[i]]] for i in free}
            prefixes = Prefixes(before, free, [*map(len, before.values())])
        for i, token in zip(free, choose_tokens(self.head, hidden, options, *keys, prefixes), strict=True):
            tokens[i] = token
        return tokens

    # Mixing by fixed-point sweeps

    def _sweep(
        self,
        rows: list[int],
        prompts: Sequence[TokenIds],
        references: Sequence[TokenIds],
        sampled: Sequence[Sequence[int]],
        options: SamplingOptions,
        ids: Sequence[int],
        out: list[list[int]],
    ) -> None:
        """`mix` for the rows of a batch: windows of the current guess, from each row's first unsettled position."""
        guess = {row: [*prompts[row], *references[row]] for row in rows}
        # A query is the position before a sampled token: its hidden state predicts that token.
        queries = {row: [len(prompts[row]) + j - 1 for j in sampled[row]] for row in rows}
        end = {row: queries[row][-1] + 1 for row in rows}  # positions that must be read
        frontier = {row: queries[row][0] + 1 for row in rows}  # positions that are read, with settled tokens

        def draw(hidden: torch.Tensor, asked: list[tuple[int, int]]) -> dict[int, int]:
            """Draws the token after each (row, query) into the guess; returns each row's first change."""
            keys = draws_after(asked, guess, prompts, ids)
            first_change: dict[int, int] = {}
            for (row, query), token in zip(asked, choose_tokens(self.head, hidden, options, *keys), strict=True):
                if guess[row][query + 1] != token:
                    # Guesses after the first change were drawn from a wrong prefix, but under the same noise: they
                    # are better guesses than gold, and are checked again.
                    guess[row][query + 1] = token
                    first_change.setdefault(row, query + 1)
            return first_change

        session = self._any_positions(len(rows), max(end.values()))
        draw(session.prefill([guess[row][: frontier[row]] for row in rows]), [(row, queries[row][0]) for row in rows])
        in_cache = active = [*rows]
        while True:
            for row in [row for row in active if frontier[row] == end[row]]:
                out[row] = guess[row][len(prompts[row]) :]
                self._report(row, sampled[row][-1] + 1)
            active = [row for row in active if frontier[row] < end[row]]
            if not active:
                return
            if len(active) <= 0.75 * len(in_cache):
                session.keep([in_cache.index(row) for row in active])
                in_cache = active
            width = min(self._sweep_width(len(in_cache)), max(end[row] - frontier[row] for row in active))
            starts = [min(frontier[row], end[row] - 1) for row in in_cache]
            # The longest window is `width` wide: the row that needs most is active.
            windows = [guess[row][start : start + width] for row, start in zip(in_cache, starts, strict=True)]
            hidden = session.step(pad_right(windows, self.pad_token_id), starts)
            places = [
                (i, query - starts[i], (row, query))
                for i, row in enumerate(in_cache)
                for query in queries[row]
                if frontier[row] <= query < frontier[row] + width
            ]
            picked = hidden[[i for i, _, _ in places], [column for _, column, _ in places]]
            first_change = draw(picked, [key for _, _, key in places])
            for row in active:
                settled = min(first_change.get(row, frontier[row] + width), end[row])
                self._checked += settled - frontier[row]
                self._changed += row in first_change
                frontier[row] = settled

    def _sweep_width(self, rows: int) -> int:
        """The window width of the best progress for its cost: wide ones need fewer forwards but are cut short more often."""
        change = self._changed / self._checked
        overhead = forward_overhead_tokens(self.model)

        def progress_per_cost(width: int) -> float:
            return (1 - (1 - change) ** width) / change / (overhead + rows * width)

        return max(_SWEEP_WIDTHS, key=progress_per_cost)

    # The model

    def _any_positions(self, rows: int, length: int) -> RaggedSession | RereadSession:
        """A session whose rows may stand at different positions."""
        if rows_of(self.model, length) is Rows.RAGGED:
            return RaggedSession(self.model, self.pad_token_id, rows, length)
        return RereadSession(self.model, self.pad_token_id, length)

    def _run(
        self,
        run: Callable[[list[int]], None],
        lengths: list[int],
        prompts: Sequence[TokenIds],
        max_padding: float = 1.0,
    ) -> None:
        if not lengths:
            return
        limit = position_limit(self.model)
        if limit is not None and max(lengths) > limit:
            raise UsageError(
                f"A sequence of {max(lengths)} tokens (longest prompt: {max(map(len, prompts))}) is over the model's "
                f"{limit} positions. Lower `max_length` or `max_new_tokens`."
            )
        check_model(self.model)
        self._reported: set[int] = set()
        with inference(self.model), self.autocast():
            self.max_batch_tokens = run_in_batches(run, lengths, self.max_batch_tokens, max_padding)

    def _report(self, row: int, tokens: int) -> None:
        # A batch that ran out of memory runs again: its rows count once.
        if row not in self._reported:
            self._reported.add(row)
            self.on_progress(1, tokens)
