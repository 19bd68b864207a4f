"""`exbias verified`: see `docs/methods/verified.md`. Also `accelerate launch … -m trl_exbias.cli.verified --config …`."""

from .training import launch, main


def run(argv: list[str]) -> int:
    """The command."""
    return launch("verified", argv)


if __name__ == "__main__":
    main("verified")
