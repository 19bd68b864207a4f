"""Where a command's data come from, and how rows become prompts and completions."""

from dataclasses import dataclass, field

from trl import ScriptArguments


@dataclass
class DataArguments(ScriptArguments):
    """
    TRL's [`~trl.ScriptArguments`], and templates for data whose columns are not called `prompt` and `completion`.

    `dataset_name` may also be a local folder or a `.json`, `.jsonl`, `.csv`, `.parquet` or `.txt` file, and a split a
    slice of one (`train[:256]`).
    """

    prompt_template: str | None = field(
        default=None,
        metadata={"help": "Jinja template of the prompt over the dataset's columns, e.g. '{{ question }}'."},
    )
    completion_template: str | None = field(
        default=None,
        metadata={"help": "Jinja template of the response over the dataset's columns, e.g. '{{ answer }}'."},
    )
    as_conversation: bool = field(
        default=False,
        metadata={"help": "Make the rendered prompt a user turn and the response an assistant turn."},
    )
    text_template: str | None = field(
        default=None,
        metadata={"help": "Jinja template of plain text over the dataset's columns, instead of prompt and completion."},
    )
    document_column: str | None = field(
        default=None,
        metadata={
            "help": "Column that is equal in all rows of a document. Their texts are joined with spaces, in order (for data "
            "with a sentence a row)."
        },
    )
