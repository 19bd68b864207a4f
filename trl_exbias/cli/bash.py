"""`exbias bash`: see `docs/methods/bash.md`. Also `accelerate launch … -m trl_exbias.cli.bash --config …`."""

from .training import launch, main


def run(argv: list[str]) -> int:
    """The command."""
    return launch("bash", argv)


if __name__ == "__main__":
    main("bash")
