"""The three verbs as vLLM requests: token ids, and the fields of `SamplingParams`. Where they go is the engine's."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from ...core.token_ids import TokenIds, check_prompts
from ..engine import SamplingOptions, check_mix
from ..noise import derive_seed
from ..stop_strings import StopStrings


#: How vLLM mixes: by a logits processor, or by a scheduler of ours (`vllm_mixing.py`).
MIX_STRATEGIES = ("forced", "continue")
_MAX_SEED = 2**63 - 1
# The most that vLLM takes: a token of equal logits would be drawn once in 10^43 times.
_EXCLUDED = -100.0


class VLLMVerbs(ABC):
    """A [`RolloutEngine`] over requests to vLLM."""

    mix_strategy: str
    on_progress: Callable[[int, int], None]
    #: Seconds until the policy was there to be asked.
    start_seconds: float

    @abstractmethod
    def _generate(
        self, prompts: list[list[int]], params: list[dict[str, Any]], stop_strings: StopStrings | None = None
    ) -> list[list[int]]:
        """The tokens that each request gives, in order; may go beyond a stop string. Reports progress."""

    @abstractmethod
    def _score(self, sequences: list[list[int]]) -> list[list[tuple[int, float]]]:
        """For each token of each sequence but the first: the most probable token in its place, and its own log-probability."""

    def sample(
        self, prompts: Sequence[TokenIds], options: SamplingOptions, example_ids: Sequence[int] | None = None
    ) -> list[list[int]]:
        ids = check_prompts(prompts, example_ids=example_ids)
        own = {"max_tokens": options.max_new_tokens, "stop_token_ids": list(options.stop_token_ids)}
        params, strings = [_params(options, example, **own) for example in ids], options.stop_strings
        drawn = self._generate(_lists(prompts), params, strings)
        # By our criterion, not by vLLM's `stop`: its text comes from another decoder, which holds back unfinished characters.
        # No token depends on those that come after it.
        return drawn if strings is None else [strings.cut(tokens) for tokens in drawn]

    def mix(
        self,
        prompts: Sequence[TokenIds],
        references: Sequence[TokenIds],
        masks: Sequence[Sequence[bool]],
        options: SamplingOptions,
        example_ids: Sequence[int] | None = None,
    ) -> list[list[int]]:
        ids, drawn = check_mix(prompts, references, masks, example_ids)
        out = _lists(references)
        rows = [row for row, positions in enumerate(drawn) if positions]
        self.on_progress(len(out) - len(rows), 0)
        # Gold before the first drawn position is prompt; gold after the last one is never read.
        heads = [_list(prompts[row]) + out[row][: drawn[row][0]] for row in rows]
        make = _continuing if self.mix_strategy == "continue" else _forcing
        params = [
            make(len(head), out[row], drawn[row], ids[row], options) for head, row in zip(heads, rows, strict=True)
        ]
        for row, tokens in zip(rows, self._generate(heads, params), strict=True):
            first, last = drawn[row][0], drawn[row][-1]
            places = drawn[row] if self.mix_strategy == "continue" else range(first, last + 1)
            for position, token in zip(places, tokens, strict=True):
                out[row][position] = token
        return out

    def label(self, contexts: Sequence[TokenIds], continuations: Sequence[TokenIds]) -> list[list[int]]:
        check_prompts(contexts, continuations, example_ids=None)
        scores = self._score([_list(c) + _list(rest) for c, rest in zip(contexts, continuations, strict=True)])
        return [[best for best, _ in row[len(context) - 1 :]] for context, row in zip(contexts, scores, strict=True)]

    def log_probs(self, tokens: TokenIds) -> list[float]:
        """Log-probability of each token of a sequence but the first, given those before it (nats)."""
        (row,) = self._score([_list(tokens)])
        return [log_prob for _, log_prob in row]


def _params(options: SamplingOptions, *key: int, **own: Any) -> dict[str, Any]:
    if options.excluded_token_ids:
        own["logit_bias"] = dict.fromkeys(options.excluded_token_ids, _EXCLUDED)
    return {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "min_p": options.min_p,
        "repetition_penalty": options.repetition_penalty,
        "seed": derive_seed(options.seed, *key) & _MAX_SEED,
        # Ours to say: the checkpoint's own end of text may be another, and in a mix it ends nothing.
        "ignore_eos": True,
        "detokenize": False,
        **own,
    }


def _forcing(
    head_length: int, reference: list[int], drawn: list[int], example: int, options: SamplingOptions
) -> dict[str, Any]:
    first, last = drawn[0], drawn[-1]
    forced = reference[first : last + 1]
    for position in drawn:
        forced[position - first] = -1
    extra = {"forced": forced, "forced_from": head_length}
    return _params(options, example, max_tokens=len(forced), extra_args=extra)


def _continuing(
    head_length: int, reference: list[int], drawn: list[int], example: int, options: SamplingOptions
) -> dict[str, Any]:
    runs = [reference[a + 1 : b] for a, b in zip(drawn, drawn[1:], strict=False)]
    seeds = [derive_seed(options.seed, example, position) & _MAX_SEED for position in drawn[1:]]
    return _params(options, example, max_tokens=1, extra_args={"gold_runs": runs, "seeds": seeds})


def scoring_params() -> dict[str, Any]:
    """The parameters of a request that is there for its prompt's log-probabilities."""
    return {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 1, "detokenize": False}


def _list(sequence: TokenIds) -> list[int]:
    return [int(token) for token in sequence]


def _lists(sequences: Sequence[TokenIds]) -> list[list[int]]:
    return [_list(sequence) for sequence in sequences]
