"""The layout of the package: every import points down the list of folders, and none goes round in a circle."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import trl_exbias


PACKAGE = Path(trl_exbias.__file__).parent
#: From the bottom to the top: a folder imports from those before it. `docs/development.md` has what each holds.
FOLDERS = (
    "core",
    "grading",
    "chat",
    "settings",
    "run",
    "rollouts",
    "hub",
    "loop",
    "methods",
    "evaluation",
    "planning",
    "demo",
    "comparing",
    "bench",
    "cli",
)


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, name: str, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports anywhere, except for type hints."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hints = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node in hints:
            continue
        base = node.module or ""
        if node.level:
            base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [base])])
        for alias in node.names:
            found |= {module for module in (f"{base}.{alias.name}", base) if module in known and module != name}
    return found - {"trl_exbias"}


GRAPH = {name: imports(path, name, modules()) for name, path in modules().items()}


def folder_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_from_those_below_it_alone(folder):
    upwards = {
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        if name.startswith(f"trl_exbias.{folder}")
        for other in others
        if FOLDERS.index(folder_of(other)) > FOLDERS.index(folder)
    }
    assert not upwards


def test_every_folder_is_in_the_list():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"} == {*FOLDERS, "templates"}


def test_no_module_imports_itself_by_way_of_others():
    """Imports at the top of a file only: those within a function may close a circle, which is what they are there for."""
    done, path = set(), []

    def visit(name: str) -> None:
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for other in sorted(GRAPH[name]):
            visit(other)
        done.add(path.pop())

    for name in sorted(GRAPH):
        visit(name)


def functions():
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield path.relative_to(PACKAGE), node


def test_no_function_is_longer_than_sixty_lines():
    """Without its docstring."""
    for path, node in functions():
        docstring = ast.get_docstring(node, clean=False) or ""
        length = node.end_lineno - node.lineno + 1 - len(docstring.splitlines())
        assert length <= 60, f"{path}: {node.name} has {length} lines"


def test_files_are_short():
    lengths = {
        path.relative_to(PACKAGE): len(path.read_text(encoding="utf-8").splitlines()) for path in modules().values()
    }
    assert statistics.median(length for length in lengths.values() if length) <= 120
    assert not {path for path, length in lengths.items() if length > 350}


def test_helpers_read_few_names_of_a_trainer():
    """A function that is handed a trainer reads at most six names of it; `hub`'s cards, which print it, are exempt."""
    for path, node in functions():
        parameters = {argument.arg for argument in node.args.args}
        if "trainer" not in parameters or path.parts[0] == "hub":
            continue
        names = {
            part.attr
            for part in ast.walk(node)
            if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "trainer"
        }
        assert len(names) <= 6, f"{path}: {node.name} reads {sorted(names)}"


def test_the_registry_and_the_plans_need_no_torch():
    code = (
        "import sys; from trl_exbias.settings.methods import methods; "
        "[m.phase_plan() for m in methods().values()]; assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_package_is_in_the_distribution():
    text = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert not {name for name in packages if f'    "{name}",' not in text}
