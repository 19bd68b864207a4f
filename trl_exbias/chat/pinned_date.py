"""Chat templates that print the day's date, held to the day on which a run began.

Without it, a run that is resumed on another day would have other tokens than before: other data, says its fingerprint.
"""

from datetime import datetime


# The directives of `strftime`. Other padding (`%-d`) is a glibc extension that templates use.
_DIRECTIVES = [f"%{pad}{letter}" for letter in "aAbBcdHIjmMpSUwWxXyYZfGuV" for pad in ("", "-")]
_MACRO = "{%- macro strftime_now(format) -%}"


def pinned(chat_template: str | None, moment: datetime) -> str | None:
    """
    A template whose `strftime_now` gives `moment`; one that does not ask for the time as it is.

    Args:
        chat_template (`str`, *optional*): As a tokenizer has it. (Named templates, a dictionary, stay as they are.)
    """
    if not isinstance(chat_template, str) or "strftime_now" not in chat_template or chat_template.startswith(_MACRO):
        return chat_template
    # A macro of the same name goes before transformers' function; on a line of its own it changes nothing of the rest.
    filters = "".join(f"|replace({name!r}, {moment.strftime(name)!r})" for name in _DIRECTIVES)
    return f"{_MACRO}{{{{ format{filters} }}}}{{%- endmacro %}}\n{chat_template}"
