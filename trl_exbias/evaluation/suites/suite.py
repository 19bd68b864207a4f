"""What a suite is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import MissingPackageError
from ..figures import Figure
from ..subject import Sampling


if TYPE_CHECKING:
    from ..options import EvaluationOptions
    from ..work import Work


@dataclass(frozen=True, kw_only=True)
class Suite:
    """
    One kind of measurement.

    Args:
        name (`str`): What it is called on the command line.
        figures (`Callable[[Work], dict[str, Figure]]`): Measures one model.
        data (`tuple[str, str | None, str]`, *optional*): Hub id, configuration and split of its own data.
        prompt_template, completion_template (`str`, *optional*): Jinja over its own data's columns.
        as_conversation (`bool`): Whether its prompts go through the chat template of a tokenizer that has one.
        sampling ([`Sampling`], *optional*): How responses are drawn. `None`: it needs none.
        needs_references (`bool`): Whether the data must have an answer to each prompt.
        takes_text (`bool`): Whether it can be given plain text, which is cut into contexts and continuations.
        min_prompts (`int`): Fewer than these say nothing, and are refused.
        packages (`dict[str, str]`): Modules that it needs, and the extra that installs each.
        check (`Callable[[EvaluationOptions], None]`, *optional*):
            Raises a `ValueError` for options that it cannot use, before anything is spent.
        requests (`Callable[[Work, dict[str, str]], list[JudgeRequest]]`, *optional*):
            What a judge would be asked about responses, by the prompt's id.
        plot (`Callable[[dict[str, dict[str, Figure]], Path], list[Path]]`, *optional*):
            Draws what the suite left in `Work.drawn` of each model into a folder, and returns the files.
    """

    name: str
    figures: Callable[["Work"], dict[str, Figure]]
    data: tuple[str, str | None, str] | None = None
    prompt_template: str | None = None
    completion_template: str | None = None
    as_conversation: bool = False
    sampling: Sampling | None = Sampling()
    needs_references: bool = True
    takes_text: bool = True
    min_prompts: int = 1
    packages: dict[str, str] = field(default_factory=dict)
    check: Callable[["EvaluationOptions"], Any] = lambda options: None
    requests: Callable[["Work", dict[str, str]], list[Any]] | None = None
    plot: Callable[[dict[str, dict[str, Figure]], Path], list[Path]] | None = None

    def check_packages(self) -> None:
        """
        Raises:
            ImportError: if a package that it needs is not installed; names the extra.
        """
        for module, extra in self.packages.items():
            if find_spec(module) is None:
                raise MissingPackageError(
                    f"The suite `{self.name}` needs the package `{module}`: `pip install trl-exbias[{extra}]`."
                )
