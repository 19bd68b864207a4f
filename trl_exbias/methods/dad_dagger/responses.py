"""Trajectories from prompt-completion data, cut from the responses."""

import logging

import numpy as np
from datasets import Dataset, Features, Value

from ...core.branches import CONTEXT_LENGTH, OWN_COLUMNS, PROMPT, REFERENCE, REFERENCE_LABELS
from ...core.errors import UsageError
from .trajectories import DOCUMENT, add_trajectory


logger = logging.getLogger(__name__)


def cut_responses(rows: Dataset, rollout_length: int, stride: int) -> Dataset:
    """
    Cuts prompt-completion rows: the context is the prompt and the first tokens of the response, the horizon the next
    `rollout_length` tokens, one trajectory every `stride` tokens; the last horizon ends with the response.

    Args:
        rows (`datasets.Dataset`): As [`~trl_exbias.chat.prompts.mark_responses`] makes them.

    Returns:
        `datasets.Dataset`: As [`~trl_exbias.methods.dad_dagger.documents.cut_documents`].
    """

    prompts = [name for name in OWN_COLUMNS[1:] if name in rows.column_names]

    def cut(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        out: dict[str, list] = {name: [] for name in ("input_ids", "labels", CONTEXT_LENGTH, DOCUMENT, *prompts)}
        for i, row in enumerate(indices):
            ids, labels, begin = batch["input_ids"][i], batch["labels"][i], batch[CONTEXT_LENGTH][i]
            for start in range(begin, len(ids), stride):
                stop = min(start + rollout_length, len(ids))
                if any(label != -100 for label in labels[start:stop]):
                    add_trajectory(out, ids[:stop], start, row, labels[start:stop])
                    own = {name: batch[name][i] for name in prompts}
                    for name, value in _prompt_at(own, len(ids) - start, stop - start).items():
                        out[name].append(value)
        return out

    features = {name: rows.features[name] for name in ("input_ids", "labels", CONTEXT_LENGTH, *prompts)}
    features = Features({**features, DOCUMENT: Value("int64")})
    return rows.map(
        cut,
        batched=True,
        with_indices=True,
        remove_columns=rows.column_names,
        features=features,
        desc="Cutting trajectories",
    )


def report_uncut(num_rows: int, trajectories: Dataset, name: str, max_length: int | None) -> None:
    """
    Warns of rows that [`cut_responses`] has cut no trajectory from.

    Args:
        name (`str`): What a message calls the rows' data set.

    Raises:
        ValueError: if there is no trajectory at all.
    """
    uncut = num_rows - len(np.unique(np.asarray(trajectories[DOCUMENT])))
    where = f"a token of their last response within `max_length={max_length}`"
    if uncut == num_rows:
        raise UsageError(
            f"None of the {num_rows} rows of the {name} keeps {where.replace('their', 'its')}: no trajectory can be cut. Raise "
            "`max_length`."
        )
    if uncut:
        logger.warning(f"{uncut} of {num_rows} rows of the {name} do not keep {where}: no trajectory is cut from them.")


def _prompt_at(own: dict[str, list[int] | None], left: int, horizon: int) -> dict[str, list[int] | None]:
    """
    A row's prompt and reference for a trajectory that begins where `left` of the response's tokens are to come: the prompt
    continues with the part of the reference that lies before.
    """
    prompt, reference, labels = own.get(PROMPT), own.get(REFERENCE), own.get(REFERENCE_LABELS)
    if prompt is None or reference is None or labels is None:
        return own
    # Counted from the end: both have the same last tokens, not the same first ones.
    start = max(0, len(reference) - left)
    rest = slice(start, start + horizon)
    return {
        PROMPT: [*prompt, *reference[:start]],
        REFERENCE: reference[rest],
        REFERENCE_LABELS: labels[rest],
    }
