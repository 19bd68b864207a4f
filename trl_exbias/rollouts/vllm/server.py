"""Rolls out with a running `vllm serve`, on this machine or another one.

The server has to be told beforehand what a rollout needs of it:

    VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --tokens-only --dtype bfloat16 \\
        --logits-processors trl_exbias.rollouts.vllm_mixing:ForcedTokens

It reads the policy's weights from the run's folder, which both machines must see under the same path. The calls that
reload weights (`/collective_rpc`) ask for no key: keep the server on the loopback or a network of its own.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from ...core.json_server import JsonServer
from ..stop_strings import StopStrings
from .probe import WeightProbe
from .process import RolloutEngineError
from .verbs import VLLMVerbs, scoring_params


logger = logging.getLogger(__name__)

#: Environment variable with the server's key (`vllm serve` reads it too).
API_KEY = "VLLM_API_KEY"
_CONCURRENT_REQUESTS = 256


class VLLMServerEngine(VLLMVerbs):
    """
    A [`RolloutEngine`] around a running `vllm serve --tokens-only`; `with` hands it the weights.

    Args:
        base_url (`str`, *optional*, defaults to `"http://127.0.0.1:8000"`):
            The address of the server.
        weights (`str` or `Path`, *optional*):
            Folder of weights for the server to load. Default: it keeps those it has.
        adapter (`str` or `Path`, *optional*):
            Folder of a LoRA adapter for the server to load over its weights.
        name (`str`, *optional*, defaults to `"policy"`):
            What the adapter is called there: another one for other weights.
        loads (`bool`, *optional*, defaults to `True`):
            `False` where another process hands the weights over, and takes the adapter away again.
        mix_strategy (`str`, *optional*, defaults to `"forced"`):
            What the server was started with; see [`VLLMEngine`].
        timeout (`float`, *optional*, defaults to `900`):
            Seconds without an answer after which the server is given up.
        probe ([`WeightProbe`], *optional*):
            Checked when the weights have been handed over.
        on_progress (`Callable[[int, int], None]`, *optional*):
            As in [`TransformersEngine`].

    Raises:
        RolloutEngineError: if the server cannot be reached, refuses, or serves other weights; says what to do.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        weights: str | Path | None = None,
        adapter: str | Path | None = None,
        name: str = "policy",
        loads: bool = True,
        mix_strategy: str | None = None,
        timeout: float = 900.0,
        probe: WeightProbe | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ):
        self.base_url, self.weights, self.adapter, self.name, self.loads = base_url, weights, adapter, name, loads
        self.mix_strategy, self.timeout, self.probe = mix_strategy or "forced", timeout, probe
        self.on_progress = on_progress or (lambda sequences, tokens: None)
        self._server = JsonServer(
            base_url,
            "The vLLM server",
            API_KEY,
            RolloutEngineError,
            timeout=timeout,
            patience=timeout,
            hint=_hint,
            max_requests=_CONCURRENT_REQUESTS,
        )

    def __enter__(self) -> "VLLMServerEngine":
        started = time.perf_counter()
        try:
            if self.loads:
                self._hand_over()
            if self.probe is not None:
                self.probe.check(self.log_probs(self.probe.tokens))
        except BaseException:
            self.__exit__()
            raise
        self.start_seconds = time.perf_counter() - started
        logger.info(f"The vLLM server at {self.base_url} has the policy's weights after {self.start_seconds:.1f} s.")
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.loads and self.adapter is not None:
            with contextlib.suppress(httpx.HTTPError):
                self._server.post_once("/v1/unload_lora_adapter", {"lora_name": self.name}, timeout=10)
        self._server.__exit__()

    def _hand_over(self) -> None:
        if self.adapter is not None:
            path = str(Path(self.adapter).absolute())
            self._server.post(
                "/v1/load_lora_adapter", {"lora_name": self.name, "lora_path": path, "load_inplace": True}
            )
        elif self.weights is not None:
            path = str(Path(self.weights).absolute())
            self._server.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}})
            # What it has cached was computed with the weights before.
            self._server.post("/reset_prefix_cache", {})

    def _generate(
        self, prompts: list[list[int]], params: list[dict[str, Any]], stop_strings: StopStrings | None = None
    ) -> list[list[int]]:
        # A server for tokens alone has no tokenizer: it draws on, and what is too much is cut off.
        out: list[list[int]] = [[] for _ in prompts]
        for row, answer in self._ask_all(prompts, params):
            out[row] = answer["choices"][0]["token_ids"]
            self.on_progress(1, len(out[row]))
        return out

    def _score(self, sequences: list[list[int]]) -> list[list[tuple[int, float]]]:
        out: list[list[tuple[int, float]]] = [[] for _ in sequences]
        for row, answer in self._ask_all(sequences, [scoring_params()] * len(sequences)):
            # JSON has made strings of the ids.
            positions = [{int(token): entry for token, entry in p.items()} for p in answer["prompt_logprobs"][1:]]
            out[row] = [
                (next(best for best, entry in position.items() if entry["rank"] == 1), position[token]["logprob"])
                for token, position in zip(sequences[row][1:], positions, strict=True)
            ]
        return out

    def _ask_all(self, prompts: list[list[int]], params: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Row and answer of each request, as they come."""
        bodies = [{"token_ids": prompt, "sampling_params": own} for prompt, own in zip(prompts, params, strict=True)]
        if self.adapter is not None:
            bodies = [body | {"model": self.name} for body in bodies]
        for row, answer in self._server.post_all("/inference/v1/generate", bodies):
            yield row, answer.json()


def _hint(path: str, answer: httpx.Response | None) -> str:
    if answer is None or answer.status_code != 404:
        return ""
    missing = {
        "/v1/load_lora_adapter": "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and `--enable-lora`",
        "/inference/v1/generate": "`--tokens-only`",
    }
    return f" Start it with {missing.get(path, 'VLLM_SERVER_DEV_MODE=1')}."
