"""What the pages show works: every Python block and both sides of every diff, on tiny models; every setting has its unit."""

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from transformers import PretrainedConfig

from trl_exbias.cli.main import main
from trl_exbias.core.layout import branch_attention_mask
from trl_exbias.settings.methods import methods
from website import pictures, reference

from .tiny import byte_tokenizer, tiny_model


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
#: Pages whose Python blocks are run in order, as one script.
SCRIPTS = ("get_started/own_script.md", "guides/lora.md", "concepts/branches.md")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    return [code for kind, code in _BLOCK.findall((DOCS / page).read_text(encoding="utf-8")) if kind == language]


def side(diff: str, sign: str) -> str:
    """One side of a diff."""
    return "".join(line[2:] or "\n" for line in diff.splitlines(keepends=True) if line[0] in f"{sign} \n")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def execute(model, tmp_path, monkeypatch):
    """Runs code with the tiny model in the place of every Qwen, and small data sets where the page assumes some."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    rows = [{"prompt": f"{i} + 1 = ", "completion": f"{i + 1}, that is all."} for i in range(16)]
    turns = [
        [{"role": r, "content": t} for r, t in zip(("user", "assistant"), row.values(), strict=True)] for row in rows
    ]
    given = {"dataset": Dataset.from_list(rows), "chats": Dataset.from_dict({"messages": turns})}

    def execute(code: str) -> dict:
        names = dict(given)
        # TRL's own configurations ask for bf16 unless told otherwise, which transformers refuses without a GPU.
        code = re.sub(r'\b((?:SFT|GKD|Distillation)Config\("[\w/]+")', r"\1, bf16=False", code)
        exec(compile(re.sub(r"Qwen/Qwen3-[\d.]+B", model, code), "page", "exec"), names)
        return names

    return execute


@pytest.mark.parametrize("page", SCRIPTS)
def test_the_python_of_a_page_runs(page, execute):
    names = execute("\n".join(blocks(page, "python")))
    if "trainer" in names:
        assert names["trainer"].state.global_step > 0


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("sign", ["-", "+"])
def test_both_sides_of_a_migration_run(number, sign, execute):
    diff = blocks("get_started/migration.md", "diff")[number]
    assert execute(side(diff, sign))["trainer"].state.global_step > 0


def test_migrating_from_spin_runs(execute):
    (code,) = blocks("get_started/migration.md", "python")
    assert execute(code)["trainer"].state.global_step > 0


def test_the_readme_fits_one_screen_and_its_eight_lines_work(execute):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = [code for kind, code in _BLOCK.findall(text) if kind == "python"]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) == 8 and len(text.splitlines()) <= 45
    assert execute(code)["trainer"].state.global_step > 0


def test_own_data_is_checked_and_trained_on(model, tmp_path):
    """The page's two files, as they are except for the model, and its two commands."""
    (rows,), (recipe,) = blocks("get_started/own_data.md", "json"), blocks("get_started/own_data.md", "yaml")
    (tmp_path / "rows.jsonl").write_text(rows)
    keys = yaml.safe_load(recipe) | {"model_name_or_path": model, "use_cpu": True, "max_degenerate_rate": 1.0}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(keys))
    commands = [line for block in blocks("get_started/own_data.md", "bash") for line in block.splitlines()]
    assert [line.split()[1] for line in commands] == ["check", "bash", "rollouts"]
    for line in commands:
        argv = [sys.executable, "-m", "trl_exbias.cli.main", *line.split()[1:]]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_a_file_of_conversations_with_lora_is_checked(model, tmp_path, monkeypatch, capsys):
    """The page's recipe and row, as they are except for the model."""
    (row,), (recipe,) = blocks("guides/lora.md", "json"), blocks("guides/lora.md", "yaml")
    (tmp_path / "support.jsonl").write_text(20 * row)
    (tmp_path / "support.yaml").write_text(yaml.safe_dump(yaml.safe_load(recipe) | {"model_name_or_path": model}))
    monkeypatch.chdir(tmp_path)
    assert main(["check", "support.yaml", "--gpu_memory_gib", "24"]) == 0
    said = capsys.readouterr().out
    assert "0 errors" in said and re.search(r"\niteration 2 +20 ", said), said


@pytest.mark.parametrize("method", list(methods()))
def test_every_number_among_the_settings_has_a_unit(method):
    options = [option for _, options in reference.own_sections(method) for option in options]
    numbers = {option.name for option in options if re.search(r"\b(int|float)\b", option.kind)}
    assert not numbers - {*reference.UNITS}


def test_units_are_of_settings_that_exist():
    known = {o.name for method in methods() for _, options in reference.own_sections(method) for o in options}
    assert not {*reference.UNITS} - known


def test_the_generated_pages_hold_every_setting_and_command():
    settings, commands = reference.settings_page(), reference.commands_page()
    for method in methods():
        for _, options in reference.own_sections(method):
            assert not [o.name for o in options if f"| `{o.name}` |" not in settings]
    assert "\n## exbias demo\n" in commands and "--quick" in commands


def test_the_picture_of_the_mask_is_the_mask():
    kinds = "xxxyyyzzz"
    segments = torch.tensor([["xyz".index(kind) for kind in kinds]])
    examples, positions = torch.zeros_like(segments), torch.tensor([[0, 1, 2, 3, 4, 5, 3, 4, 5]])
    mask = branch_attention_mask(segments, examples, positions, PretrainedConfig(attn_implementation="sdpa"))
    assert {*map(tuple, mask[0, 0].nonzero().tolist())} == {*pictures.seen([*kinds])}


@pytest.mark.parametrize("draw", pictures.DRAWN, ids=lambda draw: draw.__name__)
def test_the_pictures_are_those_that_the_script_draws(draw):
    there = (pictures.FOLDER / f"{draw.__name__}.svg").read_text(encoding="utf-8")
    drawn, release = draw(), re.compile("Matplotlib v[0-9.]+")
    if release.findall(drawn) != release.findall(there):
        pytest.skip("drawn with another release of matplotlib")
    assert there == drawn


def test_every_metric_that_the_sources_name_is_on_its_page():
    page = (DOCS / "reference" / "logged_metrics.md").read_text(encoding="utf-8")
    prefixes = "loss|rollout|bash|rac|dad|spin|gate|verified|teacher|trunk|mixing|seconds|memory"
    sources = [path for part in ("loop", "methods", "rollouts") for path in (ROOT / "trl_exbias" / part).rglob("*.py")]
    named = {
        name for path in sources for name in re.findall(rf'"((?:{prefixes})/\w+)"', path.read_text(encoding="utf-8"))
    }
    assert len(named) > 30
    assert {name for name in named if f"`{name}`" not in page} == set()


def test_the_nav_names_every_page_once():
    """`make docs` also finds pages that are not in it; here without mkdocs."""

    class Loader(yaml.SafeLoader):
        pass

    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for each in (entry.values() if isinstance(entry, dict) else entry) for page in pages(each)]

    named = pages(yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"])
    generated = {"contributing.md", "changelog.md", *(f"reference/{n}.md" for n in ("api", "settings", "commands"))}
    assert sorted(named) == sorted({path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} | generated)


def _messages() -> str:
    """The strings of the package, each in one piece, without backticks and with a blank for what is filled in."""
    found = []
    for path in (ROOT / "trl_exbias").rglob("*.py"):
        said = ""
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
            if token.type == tokenize.STRING:
                opened = re.match(r"(?i)[a-z]*(\"\"\"|'''|\"|')", token.string)
                said += token.string[opened.end() : -len(opened[1])]
            elif token.type not in (tokenize.NL, tokenize.COMMENT):
                said += "\0"
        found.append(re.sub(r"\{[^{}]*\}", " ", said).replace("`", ""))
    return "\n".join(found)


def test_the_messages_on_the_page_of_troubles_are_those_that_are_printed():
    table = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    cells = [line.removeprefix("| ").split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    shown = [message for cell in cells for message in re.findall(r"``? ?(.+?) ?``?(?=,|$| near)", cell)]
    pieces = {
        piece.strip(" `")
        for message in shown
        for piece in re.split(r"…|\b[NM]%?(?= )|\b\d+\b", message.replace("`", ""))
        if len(piece.strip(" `")) > 3
    }
    assert len(pieces) > 30
    printed = re.sub(r" +", " ", _messages())
    assert not {piece for piece in pieces if piece not in printed}
