"""A small table of sample rollouts, for the eye: what the policy made of a prompt, and what it will be taught."""

from importlib.util import find_spec

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..core.data import Example


_PROMPT_TOKENS = 40  # the end of a long prompt is what the response answers
_CORRECTIONS = 12  # labels of a branch; their number says the rest


def print_rollouts(
    rollouts: Dataset, gold: Dataset, tokenizer: PreTrainedTokenizerBase, num_rows: int, title: str
) -> None:
    """
    Prints the first `num_rows` branches with their prompt and gold response; nothing where `rich` is not installed.

    Tokens of the branch that differ from gold at their position are marked, and so are positions where the label
    differs from the token.
    """
    if not find_spec("rich") or len(rollouts) == 0:
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False)

    table = Table(title=title, show_lines=True, expand=True)
    for heading in ("prompt (end)", "gold response", "branch", "labels where they differ from the branch"):
        table.add_column(heading, ratio=1, overflow="fold")
    for branch in rollouts.select(range(min(num_rows, len(rollouts)))):
        example = Example.from_row(branch["example_id"], gold[branch["example_id"]])
        response = example.response_ids
        marked, corrections = Text(), []
        for j, (token, label) in enumerate(zip(branch["input_ids"], branch["labels"], strict=True)):
            differs_from_gold = branch["kind"] == "mixed" and j < len(response) and token != response[j]
            corrected = label not in (token, -100)
            marked.append(decode([token]), style="bold magenta" if differs_from_gold or corrected else "")
            if corrected:
                corrections.append(f"{decode([token])!r} → {decode([label])!r}")
        if len(corrections) > _CORRECTIONS:
            corrections[_CORRECTIONS:] = [f"… and {len(corrections) - _CORRECTIONS} more"]
        prompt = decode(example.context_ids[-_PROMPT_TOKENS:])
        table.add_row(Text(prompt), Text(decode(response)), marked, Text("  ".join(corrections)))
    Console().print(table)
