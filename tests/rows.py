"""Random rows for tests of rollout engines."""

import torch

from trl_exbias.rollouts.noise import uniform

from .tiny import VOCAB_SIZE


def random_rows(num_rows: int, seed: int = 0, longest: int = 30) -> tuple[list[list[int]], list[list[int]]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist()

    return [draw(1, longest) for _ in range(num_rows)], [draw(0, longest) for _ in range(num_rows)]


def masks_for(references: list[list[int]], beta: float) -> list[list[bool]]:
    return [(uniform(99, [i], len(row))[0] < beta).tolist() for i, row in enumerate(references)]
