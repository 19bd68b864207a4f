"""Every text file is read and written as UTF-8, whatever the system's own encoding is."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("trl_exbias", "examples") for path in (ROOT / folder).rglob("*.py"))


def _without_encoding(call: ast.Call) -> bool:
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    match call.func:
        case ast.Attribute(attr="read_text"):
            return not call.args
        case ast.Attribute(attr="write_text"):
            return True
        case ast.Name(id="open"):
            mode = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode")]
            return not (mode and isinstance(mode[0], ast.Constant) and "b" in mode[0].value)
    return False


@pytest.mark.parametrize("folder", ["trl_exbias", "examples"])
def test_text_files_name_their_encoding(folder):
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        if path.is_relative_to(ROOT / folder)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _without_encoding(node)
    ]
    assert not found
