import pytest

from .runs import Run, run


@pytest.fixture(scope="session")
def single(tmp_path_factory):
    """The run of each method in one process, made once."""
    made: dict[str, Run] = {}

    def of(method: str) -> Run:
        if method not in made:
            made[method] = run(method, tmp_path_factory.mktemp(method), 1)
        return made[method]

    return of
