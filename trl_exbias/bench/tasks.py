"""
Tasks whose true distribution is known, so that a model can be judged on states of its own.

Each asks one question of a method: *after a wrong or a different token, is gold still the right next token?* Where it is
(`fix`), a method that trains gold on visited states can teach a model to recover. Where it is not (`walk`), the same label
teaches it to ignore its own prefix.

Shapes: N rows, P tokens of a prompt, R of a response, A words that responses are made of.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Rows:
    """
    Rows of a task as token ids.

    Args:
        prompts (`torch.Tensor` of shape `(N, P)`): int64.
        responses (`torch.Tensor` of shape `(N, R)`): int64, below A; the end token is not part of it.
    """

    prompts: torch.Tensor
    responses: torch.Tensor

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Task:
    """
    A task: rows from a seed, and what is true of them.

    Args:
        name (`str`), about (`str`): Its name, and one sentence on what it shows.
        gold_stays_right (`bool`): Whether gold is the right next token after a wrong or different one, and can be found.
        words (`tuple[str, ...]`): The vocabulary, by token id; the first `num_answer_words` are those of responses.
        num_answer_words (`int`): A.
        make (`Callable[[int, int], Rows]`): Rows from their number and a seed.
        is_right (`Callable[[Rows, torch.Tensor], torch.Tensor]`): Which tokens of own responses `(N, R)` are right.
        true_after_gold (`Callable[[Rows], torch.Tensor]`): p* of each position after gold tokens, `(N, R, A)`.
        true_after_own (`Callable[[Rows, torch.Tensor], torch.Tensor]`): p* of the right next token after tokens that the
            model drew itself, `(N, R, A)`. They do not show what is right.
        reads_reference (`bool`): Whether the starting model is taught to rewrite from a reference (for RAC).
    """

    name: str
    about: str
    gold_stays_right: bool
    words: tuple[str, ...]
    num_answer_words: int
    make: Callable[[int, int], Rows]
    is_right: Callable[[Rows, torch.Tensor], torch.Tensor]
    true_after_gold: Callable[[Rows], torch.Tensor]
    true_after_own: Callable[[Rows, torch.Tensor], torch.Tensor]
    reads_reference: bool = False


STATES, STEPS, LENGTH = 8, 4, 16
#: Ends a prompt, and a reference that is shown.
COLON, EQUALS = ":", "="


def fix(
    name: str, about: str, landmark_accuracy: float, known_start: bool = False, reads_reference: bool = False
) -> Task:
    """
    Dead reckoning: states `s_t = s_0 + u_1 + … + u_t (mod 8)`, of which the prompt gives each step `u_t` exactly and a landmark
    `z_t` that equals `s_t` with a probability; the response is the states. The start `s_0` is hidden.

    The first token is a guess. After gold everything follows from `y_{t-1} + u_t`, so that training on gold alone never
    needs the landmarks; a model that has guessed wrong can find back by them alone.
    """

    def make(num_rows: int, seed: int) -> Rows:
        generator = torch.Generator().manual_seed(seed)

        def draw(high: int, *shape: int) -> torch.Tensor:
            return torch.randint(high, shape, generator=generator)

        steps = draw(STEPS, num_rows, LENGTH)
        start = draw(STATES, num_rows, 1) * (not known_start)
        states = (start + steps.cumsum(1)) % STATES
        is_true = torch.rand(num_rows, LENGTH, generator=generator) < landmark_accuracy
        landmarks = torch.where(is_true, states, draw(STATES, num_rows, LENGTH))
        pairs = STATES + steps * STATES + landmarks
        colon = torch.full((num_rows, 1), STATES + STEPS * STATES)
        return Rows(torch.cat([pairs, colon], 1), states)

    def posterior(rows: Rows) -> torch.Tensor:
        """What a prompt says of each state: P(s_t | steps and landmarks)."""
        pairs = rows.prompts[:, :-1] - STATES
        travelled, landmarks = (pairs // STATES).cumsum(1), pairs % STATES
        starts = torch.arange(STATES)
        if known_start:
            belief = F.one_hot(torch.zeros(len(rows), dtype=torch.long), STATES).float()
        else:
            agrees = (starts + travelled.unsqueeze(2)) % STATES == landmarks.unsqueeze(2)
            likelihood = landmark_accuracy * agrees + (1 - landmark_accuracy) / STATES
            belief = likelihood.log().sum(1).softmax(-1)
        came_from = (starts - travelled.unsqueeze(2)) % STATES
        return belief.unsqueeze(1).expand(-1, LENGTH, -1).gather(2, came_from)

    def after_gold(rows: Rows) -> torch.Tensor:
        true = F.one_hot(rows.responses, STATES).float()
        true[:, 0] = posterior(rows)[:, 0]
        return true

    pairs = [f"+{step}@{landmark}" for step in range(STEPS) for landmark in range(STATES)]
    return Task(
        name,
        about,
        gold_stays_right=landmark_accuracy > 0 and not known_start,
        words=(*(f"s{state}" for state in range(STATES)), *pairs, COLON, EQUALS),
        num_answer_words=STATES,
        make=make,
        is_right=lambda rows, own: own == rows.responses,
        true_after_gold=after_gold,
        true_after_own=lambda rows, own: posterior(rows),
        reads_reference=reads_reference,
    )


NODES, SUCCESSORS, SEEN, WALKED = 32, 3, 4, 24


def walk(name: str, about: str) -> Task:
    """A random walk on a fixed graph: each node has three successors, all equally right. Gold is one of many right ways."""
    generator = torch.Generator().manual_seed(0)
    successors = torch.stack([torch.randperm(NODES, generator=generator)[:SUCCESSORS] for _ in range(NODES)])
    transition = torch.zeros(NODES, NODES).scatter(1, successors, 1 / SUCCESSORS)

    def make(num_rows: int, seed: int) -> Rows:
        generator = torch.Generator().manual_seed(seed)
        path = [torch.randint(NODES, (num_rows,), generator=generator)]
        for _ in range(SEEN + WALKED - 1):
            path.append(successors[path[-1], torch.randint(SUCCESSORS, (num_rows,), generator=generator)])
        nodes = torch.stack(path, 1)
        return Rows(nodes[:, :SEEN], nodes[:, SEEN:])

    def after(rows: Rows, tokens: torch.Tensor) -> torch.Tensor:
        # Whoever took it, the last step decides. A token that is not a node has no successor: any is as wrong.
        before = torch.cat([rows.prompts[:, -1:], tokens[:, :-1]], 1)
        true = transition[before.clamp(max=NODES - 1)]
        return torch.where((before < NODES).unsqueeze(2), true, torch.full_like(true, 1 / NODES))

    def is_right(rows: Rows, own: torch.Tensor) -> torch.Tensor:
        return after(rows, own).gather(2, own.clamp(max=NODES - 1).unsqueeze(2)).squeeze(2).gt(0) & (own < NODES)

    return Task(
        name,
        about,
        gold_stays_right=False,
        words=(*(f"n{node}" for node in range(NODES)), COLON, EQUALS),
        num_answer_words=NODES,
        make=make,
        is_right=is_right,
        true_after_gold=lambda rows: after(rows, rows.responses),
        true_after_own=after,
    )


#: In the order of the report.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        fix("fix", "One right answer that the prompt lets the model find again after a wrong guess.", 0.6),
        fix(
            "fix-reference",
            "The same, with a starting model that can rewrite from a reference: what RAC needs.",
            0.6,
            reads_reference=True,
        ),
        fix("known-start", "Control: nothing is ever guessed, so nothing goes wrong.", 0.6, known_start=True),
        fix("no-landmarks", "Control: after a wrong guess there is nothing to find back with.", 0.0),
        walk("walk", "Open continuation: three next tokens are right, and gold is one of them."),
    )
}
