"""`exbias env`: what to paste into a bug report. Never fails for what is not installed."""

import json


def run(argv: list[str]) -> int:
    """The command."""
    from ..run.run_directory import hardware, versions

    print(json.dumps({"versions": versions(), "hardware": hardware()}, indent=2))
    return 0
