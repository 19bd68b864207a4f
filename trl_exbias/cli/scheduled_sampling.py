"""`exbias scheduled-sampling`: see `docs/methods/baselines.md`. Also `accelerate launch … -m trl_exbias.cli.scheduled_sampling --config …`."""

from .training import launch, main


def run(argv: list[str]) -> int:
    """The command."""
    return launch("scheduled-sampling", argv)


if __name__ == "__main__":
    main("scheduled-sampling")
