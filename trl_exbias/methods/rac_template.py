"""RAC's prompt template f(x, y): how the reference answer is shown to the model that labels its own response.

A template is jinja text with the variables `prompt` and `reference`. Without blocks, all of it is what the user says.
With a block `user` and optionally a block `system`, a conversation gets the one as its last user turn and the other as
its system message; plain-text data get the whole rendering.
"""

from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from datasets import Dataset
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from ..chat.answers import reference_text, row_answer
from ..chat.conversations import TEMPLATE_KWARGS, TOOLS, conversation, is_blank, message_columns
from ..chat.prompts import conversation_prompt_ids
from ..chat.template_form import Message, text_of
from ..core.errors import UsageError


TEMPLATE_NAMES = ("qa", "summarization")
_VARIABLES = {"prompt", "reference"}
_SHOWN = 5  # rows named in a message


class CorrectionTemplate:
    """
    The template f(x, y) of Cen 2024 Eq. 6, rendered in jinja's sandbox.

    Args:
        source (`str`):
            `"qa"` or `"summarization"` (Cen 2024, App. A.1), the path of a `.jinja` file, or the template itself.

    Raises:
        ValueError: for a file that does not exist, a jinja error, or a template that does not mention both variables.
    """

    def __init__(self, source: str):
        self.name, text = _load(source)
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        try:
            mentioned = meta.find_undeclared_variables(environment.parse(text))
            self._template = environment.from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise UsageError(
                f"`correction_template` {self.name} is not valid jinja: {error} (line {error.lineno})."
            ) from error
        missing = sorted(_VARIABLES - mentioned)
        if missing:
            raise UsageError(
                f"`correction_template` {self.name} does not mention {' and '.join(f'`{{{{ {v} }}}}`' for v in missing)}: "
                "the model must be shown both the prompt and the reference answer."
            )
        unknown = sorted(mentioned - _VARIABLES)
        if unknown:
            raise UsageError(
                f"`correction_template` {self.name} uses unknown variables {unknown}; it is given `prompt` and "
                "`reference`."
            )
        blocks = set(self._template.blocks)
        if blocks and ("user" not in blocks or blocks - {"user", "system"}):
            raise UsageError(
                f"`correction_template` {self.name} has the blocks {sorted(blocks)}; with blocks, there must be one "
                "named `user`, and there may be one named `system`."
            )

    def render_text(self, prompt: str, reference: str) -> str:
        """f(x, y) for plain-text data."""
        return self._template.render(prompt=prompt, reference=reference)

    def render_messages(self, messages: list[Message], reference: str) -> list[Message]:
        """
        f(x, y) for a conversation: the reference stands in the last user turn, everything before it stays.

        Raises:
            ValueError: if the conversation has no user turn, or there is no reference.
        """
        reference = text_of(reference)
        if not reference.strip():
            raise UsageError("There is no reference answer to show.")
        last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
        if last is None:
            raise UsageError("A conversation needs a user turn to show the reference answer in.")
        prompt = text_of(messages[last].get("content"))
        rendered = [*messages]
        rendered[last] = {**messages[last], "content": self._block("user", prompt, reference)}
        system = self._block("system", prompt, reference)
        if system and messages[0]["role"] == "system":
            rendered[0] = {**messages[0], "content": f"{text_of(messages[0].get('content'))}\n\n{system}"}
        elif system:
            rendered.insert(0, {"role": "system", "content": system})
        return rendered

    def context_ids(
        self, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None
    ) -> list[int]:
        """
        Token ids of f(x, y) for a row of prompt-completion or conversational data.

        Raises:
            ValueError: if the row has no answer to show, or no turn to show it in.
        """
        if "prompt" in row and isinstance(row["prompt"], str):
            return tokenizer(text=self.render_text(row["prompt"], reference_text(row, tokenizer)))["input_ids"]
        rendered = self.correction(row, tokenizer, chat_template)
        try:
            return conversation_prompt_ids(tokenizer, rendered, row, chat_template)
        except jinja2.TemplateError:
            # Templates of some models (Mistral, Gemma) refuse a system message.
            return conversation_prompt_ids(tokenizer, without_system_role(rendered), row, chat_template)

    def check(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> None:
        """
        Rejects rows that f(x, y) cannot be made of, before anything is rolled out.

        Raises:
            ValueError: with how many there are, the first of them, and what is wrong with it.
        """
        columns = message_columns(rows)
        if not columns:
            return
        names = [name for name in (*columns, TOOLS, TEMPLATE_KWARGS) if name in rows.column_names]
        problems = {}
        for index, row in enumerate(rows.select_columns(names)):
            *messages, answer = conversation(row)
            is_plain = not (answer.get("tool_calls") or is_blank(answer))
            if is_plain and any(message["role"] == "user" for message in messages):
                continue
            try:
                self.correction(row, tokenizer, chat_template)
            except ValueError as error:
                problems[index] = str(error)
        if problems:
            first, problem = next(iter(problems.items()))
            raise UsageError(
                f"{len(problems)} of {len(rows)} training rows cannot be corrected (rows "
                f"{', '.join(map(str, [*problems][:_SHOWN]))}{', …' if len(problems) > _SHOWN else ''}). In row {first} "
                f"{problem[0].lower()}{problem[1:]} Drop them, or use another method."
            )

    def correction(
        self, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None
    ) -> list[Message]:
        """
        The messages of f(x, y) for a conversational row.

        Raises:
            ValueError: if the row has no answer to show, or no turn to show it in.
        """
        *messages, answer = conversation(row)
        reference = row_answer(row, tokenizer, chat_template)
        if not reference.strip():
            raise UsageError(
                f"The chat template renders nothing of the last answer (its keys: {', '.join(answer)}), so there is no "
                "reference to show."
            )
        return self.render_messages(messages, reference)

    def _block(self, name: str, prompt: str, reference: str) -> str:
        variables = {"prompt": prompt, "reference": reference}
        if not self._template.blocks:
            return self._template.render(variables) if name == "user" else ""
        block = self._template.blocks.get(name)
        return "".join(block(self._template.new_context(variables))) if block else ""


def without_system_role(messages: list[Message]) -> list[Message]:
    """The same conversation for a chat template that knows no system role: its text opens the next turn."""
    if messages[0]["role"] != "system":
        return messages
    system, first, *rest = messages
    return [{**first, "content": f"{text_of(system.get('content'))}\n\n{text_of(first.get('content'))}"}, *rest]


def _load(source: str) -> tuple[str, str]:
    if source in TEMPLATE_NAMES:
        return repr(source), resources.files("trl_exbias.templates").joinpath(f"{source}.jinja").read_text(
            encoding="utf-8"
        )
    if "{{" in source or "\n" in source:
        return "(given as a string)", source
    path = Path(source)
    if path.is_file():
        return repr(source), path.read_text(encoding="utf-8")
    raise UsageError(
        f"`correction_template` {source!r} is neither one of {', '.join(map(repr, TEMPLATE_NAMES))}, nor an existing file, "
        "nor a template (which would mention `{{ prompt }}` and `{{ reference }}`)."
    )
