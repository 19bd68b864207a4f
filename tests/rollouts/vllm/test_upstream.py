"""What we use of vLLM besides its public interface is there."""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

from trl_exbias.core.surfaces import mismatches
from trl_exbias.rollouts.vllm import upstream


FOLDER = Path(upstream.__file__).parent


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_every_surface_is_as_expected():
    problems = mismatches(upstream.SURFACES)
    assert not problems, "\n".join(["What we use of vLLM has changed:", *problems])


def test_what_is_imported_of_its_inner_modules_is_listed():
    listed = {surface.where.partition(":")[0] for surface in upstream.SURFACES}
    imported = {
        node.module
        for path in FOLDER.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and not node.level and node.module.startswith("vllm.")
    }
    assert imported - listed <= {"vllm.sampling_params", "vllm.lora.request"}  # documented
    assert any(module.startswith("vllm.v1") for module in imported)
