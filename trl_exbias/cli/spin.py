"""`exbias spin`: see `docs/methods/baselines.md`. Also `accelerate launch … -m trl_exbias.cli.spin --config …`."""

from .training import launch, main


def run(argv: list[str]) -> int:
    """The command."""
    return launch("spin", argv)


if __name__ == "__main__":
    main("spin")
