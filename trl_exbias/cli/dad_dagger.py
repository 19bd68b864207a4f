"""`exbias dad-dagger`: see `docs/methods/dad_dagger.md`. Also `accelerate launch … -m trl_exbias.cli.dad_dagger --config …`."""

from .training import launch, main


def run(argv: list[str]) -> int:
    """The command."""
    return launch("dad-dagger", argv)


if __name__ == "__main__":
    main("dad-dagger")
