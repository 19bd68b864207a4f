"""One context, several branches: the example shape of every method, and how a batch of it is laid out.

A context is encoded once. Its branches (the gold response, a mixed one, the policy's own) stand behind it in one row,
each seeing the context and itself, never a sibling:

```
row       x_1 … x_{P-1} | x_P y_1 … y_{L-1} | x_P ŷ_1 … ŷ_{L-1}      each branch repeats the last context token, so
target    x_2 … x_P     | y_1 y_2 … y_L     | ŷ's labels              that its first target is predicted in its own
position  0   …  P-2    | P-1 …             | P-1 …                   segment; a branch's last token is never read
```

Where the attention implementation cannot take such a mask, every branch becomes a row of its own behind a copy of its
context: the same targets, hence the same loss.

The contexts of gold and of the rollouts may differ (see `prompts`). They share what they have in common; each branch then
begins with the rest of its own.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

from .modeling import (
    MASKABLE_IMPLEMENTATIONS,
    LMHead,
    agreement_tolerance,
    attention_mask_4d,
    base_causal_lm,
    inference,
    model_device,
    read_backbone,
)
from .upstream import attention_implementation, common_prefix_length


GOLD = "gold"
#: Column and batch entry: where in the training data a row stands.
ROW = "exbias_row"
#: Column: how many of a row's tokens precede its response.
CONTEXT_LENGTH = "context_length"
#: Columns of a row whose tokens do not begin with inference's prompt: the prompt, what of the gold answer comes after it, and
#: the labels of that.
PROMPT, REFERENCE, REFERENCE_LABELS = "exbias_prompt_ids", "exbias_reference_ids", "exbias_reference_labels"
OWN_COLUMNS = (CONTEXT_LENGTH, PROMPT, REFERENCE, REFERENCE_LABELS)


@dataclass(frozen=True)
class Branch:
    """
    A continuation of a context, and what the model shall say along it.

    Args:
        kind (`str`):
            What it is: `"gold"`, `"mixed"` (BASH), `"own"` (RAC), or a method's own name. Losses are taken and logged
            for each kind.
        input_ids (`list[int]`):
            The tokens, as the model reads them.
        labels (`list[int]`):
            The target at each position, given the context and the tokens before it; -100 for none. Aligned with
            `input_ids`, as in transformers: where a branch is imitated, `labels == input_ids`.
        weight (`float`, *optional*, defaults to `1.0`):
            Factor of the branch's token losses. The mean that they enter still counts each label once.
        score (`float`, *optional*, defaults to `0.0`):
            A number that the method finds out when it makes the branch and wants back in its loss (SPIN: the reference's
            log-probability ratio). Kept with the branch; by itself it changes nothing.
    """

    kind: str
    input_ids: list[int]
    labels: list[int]
    weight: float = 1.0
    score: float = 0.0

    def __post_init__(self):
        if len(self.input_ids) != len(self.labels):
            raise ValueError(
                f"A branch needs one label for each token (-100 for none), got {len(self.labels)} labels for "
                f"{len(self.input_ids)} tokens in a branch of kind {self.kind!r}."
            )


@dataclass(frozen=True)
class BranchedExample:
    """
    A context and its branches.

    Args:
        context_ids (`list[int]`): What the contexts of all branches begin with.
        context_labels (`list[int]`): Targets inside the context, aligned with `context_ids`; they count as gold.
        branches (`list[Branch]`): In any order: it changes nothing.
        gold_rest (`tuple[list[int], list[int]]`, *optional*): Tokens and labels of the rest of the gold branch's context.
        prompt_rest (`list[int]`, *optional*): Tokens of the rest of every other branch's.
    """

    context_ids: list[int]
    context_labels: list[int]
    branches: list[Branch]
    gold_rest: tuple[list[int], list[int]] = ((), ())
    prompt_rest: Sequence[int] = ()

    @classmethod
    def from_row(
        cls,
        input_ids: list[int],
        labels: list[int],
        context_length: int,
        branches: Sequence[Branch],
        prompt_ids: Sequence[int] | None = None,
    ):
        """
        Splits a tokenised row into context and gold branch and puts `branches` beside the latter.

        Args:
            prompt_ids (`Sequence[int]`, *optional*): The context of `branches`, where it is not gold's.
        """
        gold = Branch(GOLD, input_ids[context_length:], labels[context_length:])
        if prompt_ids is None:
            return cls(input_ids[:context_length], labels[:context_length], [gold, *branches])
        shared = common_prefix_length(input_ids[:context_length], prompt_ids)
        rest = slice(shared, context_length)
        return cls(
            input_ids[:shared],
            labels[:shared],
            [gold, *branches],
            (input_ids[rest], labels[rest]),
            prompt_ids[shared:],
        )

    def is_trained(self, branch: Branch) -> bool:
        """Whether there is anything of a branch besides the shared context: a gold response may have been cut off."""
        return bool(branch.input_ids) or (branch.kind == GOLD and bool(self.gold_rest[0]))

    def rest_of_context(self, branch: Branch) -> tuple[Sequence[int], Sequence[int]]:
        """Tokens and labels between the shared context and a branch."""
        return self.gold_rest if branch.kind == GOLD else (self.prompt_rest, [-100] * len(self.prompt_rest))


@dataclass
class BranchCollator:
    """
    Lays out examples with branches; rows without branches go to `base`, unchanged.

    Args:
        base (`Callable`):
            The collator of plain rows.
        kinds (`tuple[str, ...]`):
            Names of the branch kinds; a target's kind is its index in it.
        pad_token_id (`int`):
            Padding token.
        shared (`bool`, *optional*, defaults to `True`):
            Whether branches share the encoding of their context. `False`: separate rows.
        window (`int`, *optional*):
            Attention window of the model. A batch with a shared row longer than it falls back to separate rows, whose
            mask the model makes by itself.
        pad_to_multiple_of (`int`, *optional*):
            As in TRL's collator.

    Returns a dictionary of tensors of shape `(rows, length)`: `input_ids`, `shift_labels` (the target of each
    position), `branch_kinds` (index in `kinds`, -1 where there is no target), `branch_weights`, `num_tokens` (a
    scalar), and either `position_ids` and `segment_ids` (0 context, 1.. branches, -1 padding) or `attention_mask`.
    Where rows bring `soft_labels`, theirs too: tensors over the targets, in the order of the batch.
    """

    base: Callable[[list[dict[str, Any]]], dict[str, Any]]
    kinds: tuple[str, ...]
    pad_token_id: int
    shared: bool = True
    window: int | None = None
    pad_to_multiple_of: int | None = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        if "branches" not in features[0]:
            own = (ROW, *OWN_COLUMNS)
            batch = self.base([{k: v for k, v in row.items() if k not in own} for row in features])
            return self._with_rows(batch, features)
        examples = [
            BranchedExample.from_row(
                row["input_ids"],
                row["labels"],
                row[CONTEXT_LENGTH],
                [Branch(**b) for b in row["branches"]],
                row.get(PROMPT),
            )
            for row in features
        ]
        batch = self.collate(examples)
        if "soft_labels" in features[0]:
            # Labelled positions come in the same order in either layout: row by row, branch by branch.
            batch["soft_labels"] = concatenate(row["soft_labels"] for row in features)
        return self._with_rows(batch, features)

    @staticmethod
    def _with_rows(batch: dict[str, Any], features: list[dict[str, Any]]) -> dict[str, Any]:
        if ROW in features[0]:
            batch[ROW] = torch.tensor([row[ROW] for row in features])
        return batch

    def collate(self, examples: list[BranchedExample]) -> dict[str, torch.Tensor]:
        """The batch of some [`BranchedExample`]s."""
        shared = self.shared and not (self.window is not None and _longest(examples) > self.window)
        rows = [row for example in examples for row in (self._shared if shared else self._separate)(example)]
        length = max(len(row["input_ids"]) for row in rows)
        if self.pad_to_multiple_of is not None:
            length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
        padding = self._padding() | ({"position_ids": 0, "segment_ids": -1} if shared else {"attention_mask": 0})
        batch = {
            name: torch.tensor([row[name] + [value] * (length - len(row[name])) for row in rows])
            for name, value in padding.items()
        }
        batch["num_tokens"] = torch.tensor(sum(len(row["input_ids"]) for row in rows))
        return batch

    def _padding(self) -> dict[str, Any]:
        """What is kept of each position, and its value in the padding."""
        return {"input_ids": self.pad_token_id, "shift_labels": -100, "branch_kinds": -1, "branch_weights": 0.0}

    def _shared(self, example: BranchedExample) -> list[dict[str, list]]:
        context = example.context_ids
        # Targets of x_1 … x_{P-1} are x_2 … x_P: what the context predicts of itself is gold.
        row = _row(context, example.context_labels, self.kinds.index(GOLD), 1.0, len(context))
        row["position_ids"] = list(range(len(row["input_ids"])))
        row["segment_ids"] = [0] * len(row["input_ids"])
        for segment, branch in enumerate(filter(example.is_trained, example.branches), start=1):
            rest, rest_labels = example.rest_of_context(branch)
            # Where nothing is shared, nothing predicts a branch's first token.
            part = _row(
                [*context[-1:], *rest, *branch.input_ids],
                [*context[-1:], *rest_labels, *branch.labels],
                self.kinds.index(branch.kind),
                branch.weight,
                len(context[-1:]) + len(rest),
            )
            start, length = max(0, len(context) - 1), len(part["input_ids"])
            part["position_ids"] = list(range(start, start + length))
            part["segment_ids"] = [segment] * length
            for name, values in part.items():
                row[name] += values
        return [row]

    def _separate(self, example: BranchedExample) -> list[dict[str, list]]:
        context = example.context_ids
        rows = []
        for branch in example.branches:
            if not branch.input_ids and branch.kind != GOLD:
                continue
            rest, rest_labels = example.rest_of_context(branch)
            context_labels = example.context_labels if branch.kind == GOLD else [-100] * len(context)
            row = _row(
                [*context, *rest, *branch.input_ids],
                [*context_labels, *rest_labels, *branch.labels],
                self.kinds.index(branch.kind),
                branch.weight,
                len(context) + len(rest),
            )
            row["attention_mask"] = [1] * len(row["input_ids"])
            rows.append(row)
        return rows


def _row(tokens: list[int], labels: list[int], kind: int, weight: float, context_length: int) -> dict[str, list]:
    """Positions that read all tokens but the last, each with the next one's label as its target."""
    targets = labels[1:]
    return {
        "input_ids": list(tokens[:-1]),
        "shift_labels": list(targets),
        "branch_kinds": [kind if target != -100 else -1 for target in targets],
        "branch_weights": [weight] * len(targets),
        "in_response": [place >= context_length for place in range(1, len(tokens))],
    }


def _longest(examples: list[BranchedExample]) -> int:
    """Tokens of the longest shared row. (Of the row, not of a branch with its context: GPT-Neo windows by index.)"""
    return max(
        len(e.context_ids) + sum(len(b.input_ids) + len(e.rest_of_context(b)[0]) for b in e.branches) for e in examples
    )


def concatenate(parts: Iterable[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Tensors over several stretches of positions as tensors over all of them, name by name."""
    parts = list(parts)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def branch_attention_mask(segment_ids: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    """
    The 4-D attention mask of a shared layout, in the form that the attention implementation takes.

    Args:
        segment_ids (`torch.Tensor` of shape `(rows, length)`): 0 context, 1.. branches, -1 padding.
        config ([`~transformers.PretrainedConfig`]): The model's.

    Returns:
        `torch.Tensor` of shape `(rows, 1, length, length)`.
    """
    queries, keys = segment_ids.unsqueeze(2), segment_ids.unsqueeze(1)
    length = segment_ids.size(1)
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    # A padding query sees padding (itself at least): a row of the softmax without any key would be NaN.
    allowed = causal & ((keys == queries) | ((keys == 0) & (queries > 0)))
    return attention_mask_4d(allowed.unsqueeze(1), config)


def lay_out(inputs: dict[str, torch.Tensor], reader: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A batch of [`BranchCollator`] as the forward of `reader` takes it: segments become the mask of its attention."""
    inputs = dict(inputs)
    segment_ids = inputs.pop("segment_ids", None)
    if segment_ids is not None:
        inputs["attention_mask"] = branch_attention_mask(segment_ids, base_causal_lm(reader).config)
    return inputs


@torch.no_grad()
def check_shared_context(model: torch.nn.Module) -> str | None:
    """
    Tries the shared layout on a few tokens against separate rows, and says what is in the way, `None` if nothing is.

    Catches what no list of architectures would: attention that ignores a custom mask (FlashAttention-2), position
    biases computed from the index (ALiBi), recurrent layers.
    """
    base = base_causal_lm(model)
    implementation = attention_implementation(base.config)
    if implementation not in MASKABLE_IMPLEMENTATIONS:
        return f"`attn_implementation={implementation!r}` takes no mask of ours ('sdpa' does)"
    tokens = torch.randint(LMHead(model).vocab_size, (9,), generator=torch.Generator().manual_seed(0)).tolist()
    example = BranchedExample(
        tokens[:4], [-100] * 4, [Branch(GOLD, tokens[4:6], tokens[4:6]), Branch("other", tokens[6:], tokens[6:])]
    )
    collator = BranchCollator(lambda rows: {}, (GOLD, "other"), pad_token_id=0)
    shared = collator.collate([example])
    collator.shared = False
    separate = collator.collate([example])
    device = model_device(model)
    with inference(model):
        expected = read_backbone(
            model,
            input_ids=separate["input_ids"].to(device),
            attention_mask=separate["attention_mask"].to(device),
            use_cache=False,
        ).last_hidden_state
        try:
            found = read_backbone(
                model,
                input_ids=shared["input_ids"].to(device),
                position_ids=shared["position_ids"].to(device),
                attention_mask=branch_attention_mask(shared["segment_ids"].to(device), base.config),
                use_cache=False,
            ).last_hidden_state[0]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Whatever a foreign architecture raises at an unusual mask means the same: it cannot take it.
            return f"{type(base).__name__} does not take the mask of a shared context ({type(error).__name__}: {error})"
    # Context x_1..x_3, then x_4 with all of a branch but its last token.
    expected = torch.cat([expected[0, :5], expected[1, 3:6]])
    distance = ((found - expected).float().norm() / expected.float().norm()).item()
    if distance < agreement_tolerance(model, expected.dtype):
        return None
    return f"{type(base).__name__} reads a shared context differently (hidden states {distance:.1e} off)"
