"""The process in which vLLM lives: calls come in as JSON lines, results and signs of life go out as JSON lines.

`python -m trl_exbias.rollouts.vllm_worker READ_FD WRITE_FD`. It ends, with everything it started, when its input does: a
parent that was killed leaves no orphan. What vLLM prints goes to stdout and stderr; the two pipes are this file's alone.

Stands on vLLM 0.31: `vllm.LLM`, its `llm_engine` (`add_request`, `step`), `SamplingParams`.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

from .noise import derive_seed


_MAX_SEED = 2**63 - 1
_SECONDS_BETWEEN_REPORTS = 0.5


class Worker:
    """
    Serves one model. Its public methods are the verbs of [`VLLMEngine`], in types that JSON has.

    Args:
        report (`Callable[[int, int], None]`): Takes sequences and tokens finished since its last call.
    """

    def __init__(self, report: Callable[[int, int], None]):
        self._report = report
        self._llm = None
        self._lora = None
        self._continues = False
        self._num_requests = 0

    def start(self, model: str, adapter: str | None, mix_strategy: str, options: dict[str, Any]) -> None:
        """Loads the model; `options` are `vllm.LLM`'s."""
        from vllm import LLM

        self._continues = mix_strategy == "continue"
        if self._continues:
            options |= {"scheduler_cls": "trl_exbias.rollouts.vllm_mixing.MixScheduler", "async_scheduling": False}
        else:
            options |= {"logits_processors": ["trl_exbias.rollouts.vllm_mixing:ForcedTokens"]}
        if adapter is not None:
            from vllm.lora.request import LoRARequest

            self._lora = LoRARequest("policy", 1, adapter)
        self._llm = LLM(model, skip_tokenizer_init=True, disable_log_stats=True, **options)

    def sample(self, prompts: list[list[int]], ids: list[int], options: dict[str, Any]) -> list[list[int]]:
        stop = list(options["stop_token_ids"])
        params = [
            self._params(options, example, max_tokens=options["max_new_tokens"], stop_token_ids=stop) for example in ids
        ]
        return [output.token_ids for output in self._run(prompts, params)]

    def mix(
        self,
        prompts: list[list[int]],
        references: list[list[int]],
        drawn: list[list[int]],
        ids: list[int],
        options: dict[str, Any],
    ) -> list[list[int]]:
        """`drawn` has the positions of each reference that are drawn: at least one, in order."""
        # Gold before the first drawn position is prompt; gold behind the last one is never read.
        heads = [
            [*prompt, *reference[: positions[0]]]
            for prompt, reference, positions in zip(prompts, references, drawn, strict=True)
        ]
        make = self._continuing if self._continues else self._forcing
        params = [make(*row, options) for row in zip(map(len, heads), references, drawn, ids, strict=True)]
        out = []
        for reference, positions, output in zip(references, drawn, self._run(heads, params), strict=True):
            mixed = list(reference)
            if self._continues:
                for position, token in zip(positions, output.token_ids, strict=True):
                    mixed[position] = token
            else:
                mixed[positions[0] : positions[-1] + 1] = output.token_ids
            assert len(mixed) == len(reference)
            out.append(mixed)
        return out

    def label(self, contexts: list[list[int]], continuations: list[list[int]]) -> list[list[int]]:
        outputs = self._score([[*c, *rest] for c, rest in zip(contexts, continuations, strict=True)], 1)
        return [
            [next(token for token, entry in position.items() if entry.rank == 1) for position in scores[len(context) :]]
            for context, scores in zip(contexts, outputs, strict=True)
        ]

    def log_probs(self, tokens: list[int]) -> list[float]:
        """Of each token of a sequence but the first, given those before it (nats)."""
        (scores,) = self._score([tokens], 0)
        return [position[token].logprob for token, position in zip(tokens[1:], scores[1:], strict=True)]

    # Requests

    def _params(self, options: dict[str, Any], example: int, **own: Any):
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=options["temperature"],
            top_p=options["top_p"],
            top_k=options["top_k"],
            seed=derive_seed(options["seed"], example) & _MAX_SEED,
            # Ours to say: the checkpoint's own end of text may be another, and in a mix it ends nothing.
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **own,
        )

    def _forcing(self, head_length, reference, drawn, example, options):
        first, last = drawn[0], drawn[-1]
        forced = list(reference[first : last + 1])
        for position in drawn:
            forced[position - first] = -1
        extra = {"forced": forced, "forced_from": head_length}
        return self._params(options, example, max_tokens=len(forced), extra_args=extra)

    def _continuing(self, head_length, reference, drawn, example, options):
        runs = [list(reference[a + 1 : b]) for a, b in zip(drawn, drawn[1:], strict=False)]
        seeds = [derive_seed(options["seed"], example, position) & _MAX_SEED for position in drawn[1:]]
        return self._params(options, example, max_tokens=1, extra_args={"gold_runs": runs, "seeds": seeds})

    def _score(self, sequences: list[list[int]], top: int) -> list:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=1,
            temperature=0,
            prompt_logprobs=top,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        return [output.prompt_logprobs for output in self._run(sequences, [params] * len(sequences), whole=True)]

    def _run(self, prompts: list[list[int]], params: list, whole: bool = False) -> list:
        engine, results = self._llm.llm_engine, {}
        names = [str(self._num_requests + i) for i in range(len(prompts))]
        self._num_requests += len(prompts)
        for name, prompt, own in zip(names, prompts, params, strict=True):
            engine.add_request(name, {"prompt_token_ids": prompt}, own, lora_request=self._lora)
        sequences, tokens, reported = 0, 0, time.monotonic()
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    results[output.request_id] = output
                    sequences, tokens = sequences + 1, tokens + len(output.outputs[0].token_ids)
            # A step is a sign of life, whether or not a sequence has finished in it.
            if time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
                self._report(sequences, tokens)
                sequences, tokens, reported = 0, 0, time.monotonic()
        self._report(sequences, tokens)
        outputs = [results[name] for name in names]
        return outputs if whole else [output.outputs[0] for output in outputs]


def calls(file) -> Iterator[dict[str, Any]]:
    """Calls in order. When the parent is gone the whole process group ends, whatever it is doing."""
    queue: SimpleQueue = SimpleQueue()

    def read() -> None:
        for line in file:
            queue.put(json.loads(line))
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield queue.get()


def main(read_fd: int, write_fd: int) -> None:
    """Serves until the input ends."""
    outgoing = os.fdopen(write_fd, "w")

    def write(message: dict[str, Any]) -> None:
        outgoing.write(json.dumps(message) + "\n")
        outgoing.flush()

    worker = Worker(lambda sequences, tokens: write({"sequences": sequences, "tokens": tokens}))
    for call in calls(os.fdopen(read_fd)):
        verb = call.pop("verb")
        try:
            write({"result": getattr(worker, verb)(**call)})
        except Exception as error:  # the parent's to judge
            write({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
