"""What a suite is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..figures import Figure
from ..subject import Sampling


if TYPE_CHECKING:
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
        packages (`dict[str, str]`): Modules that it needs, and the extra that installs each.
        requests (`Callable[[Work, dict[str, str]], list[JudgeRequest]]`, *optional*):
            What a judge would be asked about responses, by the prompt's id.
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
    packages: dict[str, str] = field(default_factory=dict)
    requests: Callable[["Work", dict[str, str]], list[Any]] | None = None

    def check_packages(self) -> None:
        """
        Raises:
            ImportError: if a package that it needs is not installed; names the extra.
        """
        for module, extra in self.packages.items():
            if find_spec(module) is None:
                raise ImportError(
                    f"The suite `{self.name}` needs the package `{module}`: `pip install trl-exbias[{extra}]`."
                )
