"""Soft labels on disk, addressed by content: what a teacher says of the same tokens is worked out once.

A teacher's distribution is kept as its last hidden states (`H` numbers a position instead of `V`; with the teacher's LM
head it is the whole distribution, exactly) or as its top k with the mass of the rest. An entry's key is the hash of
the context, the branch and which of its positions are scored; a folder belongs to one teacher and one form.
"""

from collections.abc import Sequence

from .branches import Branch
from .tensor_cache import content_key


def soft_label_key(context_ids: Sequence[int], branch: Branch) -> bytes:
    """The address of a branch's soft labels: its context, its tokens, and the positions that have a label."""
    return content_key(context_ids, branch.input_ids, [label != -100 for label in branch.labels])
