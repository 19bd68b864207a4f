"""The check for calques finds every "before" of the style guide, and nothing in what is exempt."""

from pathlib import Path

import pytest

from .prose import CALQUES, calques_in, main


GUIDE = Path(__file__).parents[1] / "docs" / "style_guide.md"


def rows() -> dict[str, tuple[str, str]]:
    """The pairs of the guide's last table by the calque that they show."""
    table = GUIDE.read_text(encoding="utf-8").partition("## Calques")[2]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| `")
    ]
    return {name.strip("`"): (before.strip('"'), after) for name, before, after in cells}


def names(text: str) -> set[str]:
    return {calque.name for _, calque, _ in calques_in(text)}


def test_the_guide_lists_what_is_checked():
    assert [*rows()] == [calque.name for calque in CALQUES]


@pytest.mark.parametrize("name", rows())
def test_a_calque_is_found_before_and_not_after(name):
    before, after = rows()[name]
    assert names(before) == {name}
    assert not names(after)


@pytest.mark.parametrize(
    "text",
    [
        "There is no judge, and a longer run is no longer than that, no worse and no slower.",
        "Any judge behind an OpenAI-compatible endpoint; of course, dead reckoning is not a calque.",
        '`Out of memory: going on with …` and "it goes on", [there](beside.md#behind), 1,003 tokens at 0.001.',
        "```\nbehind\n```\n\n1. A list:\n   ```python\n   go on, so many\n   ```\n",
        "The reference was bad, so many of the labels were.",
    ],
)
def test_good_english_and_what_is_exempt_pass(text):
    assert not names(text)


def test_the_line_is_that_of_the_calque_also_across_a_line_end(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n```\nbehind\n```\n\n- a list whose run\n  goes\n  on\n\n| a | behind it |\n", encoding="utf-8"
    )
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in printed] == [f"{page}:8", f"{page}:11"]
    assert "'goes on': write 'continue'" in printed[0]


def test_in_python_strings_and_comments_are_read_and_code_is_not(tmp_path, capsys):
    source = tmp_path / "module.py"
    source.write_text(
        '"""What is behind it."""\n'
        "behind = {'a': behind}  # passed over\n"
        "raise ValueError(\n"
        "    f'`{behind}` goes '\n"
        "    'on.'\n"
        ")\n"
        "'it goes', 'on'\n"
        "def f(of):\n"
        '    """\n    Args:\n        of (`str`): A name; `behind` and ``go on`` are exempt.\n    """\n',
        encoding="utf-8",
    )
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.removeprefix(f"{source}:").split("'")[:2] for line in printed] == [
        ["1: ", "behind"],
        ["2: ", "passed over"],
        ["4: ", "goes on"],
    ]


def test_pages_without_calques_pass(tmp_path, capsys):
    (tmp_path / "page.md").write_text("# Plain English\n", encoding="utf-8")
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "1 pages without calques\n"
