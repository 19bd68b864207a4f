"""`exbias env`: what to paste into a bug report. Never fails for what is not installed."""

import json

from ..settings.parser import Parser


def run(argv: list[str]) -> int:
    """The command."""
    description = "Versions of Python and of the libraries, and the hardware, as JSON: for a bug report."
    Parser(prog="exbias env", description=description, allow_abbrev=False).parse_args(argv)
    from ..run.run_directory import hardware, versions

    print(json.dumps({"versions": versions(), "hardware": hardware()}, indent=2))
    return 0
