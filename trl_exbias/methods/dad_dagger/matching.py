"""Whether a teacher goes with a student: the same tokens, logits for all of them, and positions enough for what it reads."""

import logging

from transformers import PreTrainedTokenizerBase

from ...core.errors import UsageError


logger = logging.getLogger(__name__)


def check_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase | None) -> None:
    """
    Rejects a teacher whose token ids mean something else than the student's.

    Raises:
        ValueError: with an example of a token that differs.
    """
    if teacher is None:
        return
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    token = min(
        (token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)),
        key=lambda token: ours.get(token, theirs.get(token)),
    )
    raise UsageError(
        "Student and teacher need the same tokenizer: a distribution over one vocabulary says nothing about another. "
        f"The student's has {len(ours)} tokens and the teacher's {len(theirs)}; {token!r}, for one, is "
        f"{ours.get(token, 'missing')} for the student and {theirs.get(token, 'missing')} for the teacher. Choose a "
        "teacher of the same family."
    )


def shared_vocab_size(student_size: int, teacher_size: int, num_tokens: int) -> int:
    """
    How many logits student and teacher share: embeddings may be padded by different amounts after the same tokens.

    Raises:
        ValueError: if one of them has fewer rows than there are tokens.
    """
    shared = min(student_size, teacher_size)
    if student_size == teacher_size:
        return shared
    if shared < num_tokens:
        raise UsageError(
            f"Student and teacher have {student_size} and {teacher_size} logits, but the tokenizer has {num_tokens} "
            "tokens: the teacher was made for another vocabulary."
        )
    logger.warning(
        f"Student and teacher have {student_size} and {teacher_size} logits for the same {num_tokens} tokens: the padding "
        f"beyond {shared} is left out of the soft labels."
    )
    return shared


def check_lengths(limit: int | None, lengths: list[int]) -> None:
    """Raises a `ValueError` where a text is longer than the teacher's positions."""
    if limit is not None and max(lengths) > limit:
        raise UsageError(
            f"A context with its branch has {max(lengths)} tokens; the teacher has {limit} positions. Lower "
            "`context_length` or `rollout_length` (`max_length` for prompt-completion data)."
        )
