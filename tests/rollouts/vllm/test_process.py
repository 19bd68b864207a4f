"""The child process and its pipes, without vLLM."""

import os
import subprocess
import sys

import pytest


_CHILD = """
import json, os, sys
read, write = map(int, sys.argv[1:])
for line in os.fdopen(read):
    os.write(write, json.dumps({"result": json.loads(line)}).encode() + b"\\n")
"""
_PARENT = """
import os, sys
for descriptor in map(int, sys.argv[1:]):
    os.close(descriptor)
from pathlib import Path
from trl_exbias.rollouts.vllm.process import EngineProcess
process = EngineProcess("echoing", os.environ, Path("log"), 20.0, lambda sequences, tokens: None)
Path("answer").write_text(str(process.call("label", rows=[1, 2])))
process.close()
"""


@pytest.mark.parametrize("closed", [(), (0,), (0, 1, 2)], ids=["none", "stdin", "all"])
def test_a_parent_without_standard_streams_is_served(tmp_path, closed):
    (tmp_path / "echoing.py").write_text(_CHILD)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-c", _PARENT, *map(str, closed)]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, check=True, timeout=60)
    assert (tmp_path / "answer").read_text() == "{'verb': 'label', 'rows': [1, 2]}"
