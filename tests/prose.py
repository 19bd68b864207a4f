"""
Finds calques in Markdown and in Python: `python -m tests.prose docs trl_exbias` prints file:line of each, and exits with 1 if
there are any.

`docs/style_guide.md` lists them, each with a sentence before and after. Code, inline code, addresses of links and text in
double quotes are exempt: commands, settings and messages stay as they are. In Python, strings and comments are read.
"""

import io
import re
import sys
import tokenize
from bisect import bisect_right
from pathlib import Path
from typing import NamedTuple


class Calque(NamedTuple):
    name: str
    pattern: str
    write: str


#: A space in a pattern stands for a line end, too.
CALQUES = (
    Calque("behind", r"(?i)\bbehind\b(?! (an?|any|the) [\w-]+ ?(endpoint|proxy|firewall|scenes)\b)", "after"),
    Calque("go on", r"(?i)\b(go|goes|going|gone|went) on\b(?! (top|disk|the)\b)", "continue"),
    Calque(
        "is no",
        r"(?i)(?<!\bthere )\b(is|are|was|were) no\b(?! (longer|more|less|fewer|worse|better|different|(?!folder|number|answer|paper|helper|adapter|parameter|trainer)\w+er)\b)",
        "is not",
    ),
    Calque("so many", r"(?i)(?<!, )\bso many\b(?! of\b)", "that many"),
    Calque("Of a …,", r"\bOf (?!course\b)|[;:] of (?!course\b)", "in a …, for a …"),
    Calque("000", r"(?<![\w.,-])00\d\b(?![.,]?\d)", "Pozzi 2025, Cen 2024"),
    Calque("beside", r"(?i)\bbeside\b", "next to, with"),
    Calque("besides", r"(?i)\bbesides(?=[.,;:)])", "also"),
    Calque("but for", r"(?i)\bbut for\b", "except for"),
    Calque("passed over", r"(?i)\bpassed over\b", "skipped"),
    Calque("at hand", r"(?i)\bat hand\b", "current"),
    Calque("anew", r"(?i)\banew\b", "again"),
    Calque("hold against", r"(?i)\b(held?|holds|holding) (\w+ ){0,3}against\b", "compare with"),
    Calque("what of the", r"(?i)\bwhat of (the|an?|its)\b", "the part of the … that"),
    Calque("reckon", r"(?i)\breckon(?!ing\b)", "calculate"),  # dead reckoning is a term
)

#: Where code comes between two strings or comments: nothing that is looked for goes across.
_CODE = " \0 "
#: The names that a line of a docstring's `Args:` begins with.
_PARAMETER = re.compile(r"^( +)[\w, ]+(?= \(`)", re.MULTILINE)
_EXEMPT = (
    re.compile(r"^([ \t]*)```.*?^\1```", re.MULTILINE | re.DOTALL),
    re.compile(r"``[^\0]+?``|`[^`\0]+`"),
    re.compile(r"(?<=\])\([^)\n]*\)"),
    re.compile(r'"[^"\n]*"'),
)


def prose_of(text: str) -> str:
    """A Markdown text with what is exempt blanked out, line for line."""
    for exempt in _EXEMPT:
        text = exempt.sub(lambda match: re.sub(r"[^\n]", "~", match[0]), text)
    return text


def calques_in(text: str) -> list[tuple[int, Calque, str]]:
    """The calques in a Markdown text, each with its line and its words, in the order of the lines."""
    words = [(line, word) for line, row in enumerate(prose_of(text).split("\n"), start=1) for word in row.split()]
    starts, prose = [], ""
    for _, word in words:
        starts.append(len(prose))
        prose += word + " "
    found = [
        (words[bisect_right(starts, match.start()) - 1][0], calque, match[0].strip())
        for calque in CALQUES
        for match in re.finditer(calque.pattern, prose)
    ]
    return sorted(found, key=lambda each: each[0])


def prose_in_python(source: str) -> str:
    """The strings and comments of a Python source on the lines that they are on, with a mark where code comes between."""
    lines = [""] * (source.count("\n") + 2)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row = token.start[0] - 1
        if token.type == tokenize.COMMENT:
            lines[row] += " " + token.string.lstrip("#: ")
        elif token.type == tokenize.STRING:
            prefix, quote = re.match(r"(?i)([a-z]*)(\"\"\"|\'\'\'|\"|\')", token.string).groups()
            said = token.string[len(prefix) + len(quote) : -len(quote)]
            if "r" not in prefix.lower():
                said = said.replace("\\n", "  ").replace('\\"', '"')
            if "f" in prefix.lower():
                said = re.sub(r"\{[^{}]*\}", "~", said)
            for i, line in enumerate(_PARAMETER.sub(r"\1~", said).split("\n")):
                lines[row + i] += line if i else (_CODE if quote == '"""' else "") + line
        elif token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER):
            lines[row] += _CODE
    return "\n".join(lines)


def text_of(path: Path) -> str:
    """What is checked of a file."""
    text = path.read_text(encoding="utf-8")
    return prose_in_python(text) if path.suffix == ".py" else text


def files_in(folder: Path) -> list[Path]:
    """What is checked in a folder: not this file and its test, which quote what they look for."""
    quoting = ("prose.py", "test_prose.py")
    return [path for path in folder.rglob("*") if path.suffix in (".md", ".py", ".jinja") and path.name not in quoting]


def main(arguments: list[str]) -> int:
    given = [Path(argument) for argument in arguments]
    pages = [page for path in given for page in (sorted(files_in(path)) if path.is_dir() else [path])]
    problems = [
        f"{page}:{line}: {words!r}: write {calque.write!r} (docs/style_guide.md)"
        for page in pages
        for line, calque, words in calques_in(text_of(page))
    ]
    print("\n".join(problems) or f"{len(pages)} pages without calques")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
