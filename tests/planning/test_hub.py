import contextlib
import socket
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from trl_exbias.planning.hub import Hub, NotAtHand, is_local, uses_hub


def load(name, local_files_only=False):
    raise OSError("nothing here")


@pytest.fixture
def online(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@contextlib.contextmanager
def answering(status):
    """A server that answers every question with a status."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def test_a_hub_that_does_not_answer_is_given_up_in_seconds(online, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        assert not Hub().answers
        assert time.monotonic() - started < 10


def test_a_proxy_that_finds_no_hub_is_no_answer(online, monkeypatch):
    with answering(502) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert not Hub().answers


def test_any_answer_of_its_own_is_an_answer(online, monkeypatch):
    with answering(403) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        hub = Hub()
        assert hub.answers
        with pytest.raises(ValueError, match="nothing here"):
            hub.read("someone/model", load)


def test_offline_is_taken_at_its_word(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub = Hub()
    assert not hub.answers
    with pytest.raises(NotAtHand):
        hub.read("someone/model", load)
    with pytest.raises(ValueError, match="nothing here"):
        hub.read("/somewhere/model", load)


def test_names_and_paths_are_told_apart(tmp_path):
    assert is_local(str(tmp_path)) and is_local("./model") and is_local("a/b/c")
    assert not is_local("someone/model") and not is_local("gpt2")
    assert uses_hub({"datasets": [{"path": "someone/data"}]}) and not uses_hub({"model_name_or_path": str(tmp_path)})
