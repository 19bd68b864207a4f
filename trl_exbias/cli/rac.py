"""`exbias rac`: see `docs/methods/rac.md`. Also `accelerate launch … -m trl_exbias.cli.rac --config …`."""

from .training import launch, main


def run(argv: list[str]) -> int:
    """The command."""
    return launch("rac", argv)


if __name__ == "__main__":
    main("rac")
