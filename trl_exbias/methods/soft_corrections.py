"""Soft corrections: every position of an own answer is labelled by the distribution of the model that was shown the reference."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save

from ..core.branches import ROW, Branch, concatenate
from ..core.data import Example
from ..core.files import write_atomically
from ..core.joint_dataset import JointDataset
from ..core.modeling import LMHead
from ..core.reading import most_probable
from ..core.sharding import copied_whole, loaded_whole
from ..core.soft_labels import soft_label_key
from ..core.tensor_cache import SHARDS, TensorCache
from ..rollouts import RolloutEngine
from ..run.rollout_store import RolloutStoreError
from ..run.run_directory import ROLLOUTS, SOFT_LABELS
from .dad_dagger.scoring import teacher_labels
from .self_teacher import SelfTeacher, base_teacher
from .soft_checks import check_soft_labels
from .soft_scoring import SoftlyScoringTrainer


_HEAD_FILE = "head.safetensors"


class SoftlyCorrected(JointDataset):
    """Gold rows with their branches, and under `soft_labels` the labels of every branch but gold."""

    kept: TensorCache

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = super().__getitem__(index)
        branches = [Branch(**fields) for fields in row["branches"]]
        row["soft_labels"] = concatenate(
            self.kept.get(soft_label_key([row[ROW]], branch)) for branch in branches if branch.input_ids
        )
        return row


class SoftlyCorrectingTrainer(SoftlyScoringTrainer):
    """
    A [`SoftlyScoringTrainer`] that keeps a distribution for every position of its rollouts.

    Student and teacher read different prompts. Labels are kept and found again by the position in the response.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self._labels_softly:
            return
        check_soft_labels(self.args, self.model, self.accelerator, self.aux_loss_enabled)
        base = base_teacher(
            self.model, self.args.model_init_kwargs, self.accelerator.device, partial(loaded_whole, self.args)
        )
        self._self_teacher = SelfTeacher(self.args.self_teacher, self.model, self.args.self_teacher_decay, base)

    # Rollouts

    @contextlib.contextmanager
    def make_engine(self, on_progress: Callable[[int, int], None]) -> Iterator[RolloutEngine]:
        with super().make_engine(on_progress) as engine:
            if not self._labels_softly:
                yield engine
                return
            folder = self._labels_folder(self._iteration)
            before = None if self._iteration == 1 else self._labels_folder(self._iteration - 1)
            folder.mkdir(parents=True, exist_ok=True)
            with self._self_teacher.ready(folder, before, self.processes.writes_files):
                self._keep_head(folder / _HEAD_FILE)
                self._kept = TensorCache(folder, "soft labels")
                yield engine

    def label_softly(
        self, examples: list[Example], contexts: list[list[int]], responses: list[list[int]]
    ) -> list[list[int]]:
        """Keeps the distributions along some responses, each after its own context, and returns their most probable tokens."""
        corrected: list[list[int]] = [[] for _ in responses]
        places = [place for place, response in enumerate(responses) if response]
        rows = [(contexts[place], Branch("own", responses[place], responses[place])) for place in places]
        if not rows:
            return corrected
        with self._self_teacher.reading() as model, self.accelerator.autocast(), torch.no_grad():
            head = LMHead(model)
            labels = teacher_labels(
                head, model, rows, head.vocab_size, self.args.teacher_top_k, 1.0, self.args.rollout_batch_tokens
            )
            whole = concatenate(labels)
            best = whole["ids"][:, 0] if "ids" in whole else most_probable(head, whole["hidden"])
        lengths = [len(responses[place]) for place in places]
        for place, tokens in zip(places, best.cpu().split(lengths), strict=True):
            corrected[place] = tokens.tolist()
        keys = [soft_label_key([examples[place].id], branch) for place, (_, branch) in zip(places, rows, strict=True)]
        self._kept.add(dict(zip(keys, labels, strict=True)))
        return corrected

    def joint_dataset(self, rollouts: list[Dataset], rows: list[int] | None) -> JointDataset:
        if not self._labels_softly:
            return super().joint_dataset(rollouts, rows)
        folder = self._labels_folder(self._iteration)
        if not self.processes.share_files:
            self.processes.hand_over(folder, SHARDS)
        data = SoftlyCorrected(self.train_dataset, rollouts, rows)
        data.kept = TensorCache(folder, "soft labels")
        for part in data.rollouts:
            for fields, row in zip(part, rollouts[0]["example_id"], strict=True):
                branch = Branch(**fields)
                if branch.input_ids and soft_label_key([row], branch) not in data.kept:
                    raise RolloutStoreError(
                        f"{folder} lacks the soft labels of row {row}. Restore the folder from a copy, or resume from a "
                        "checkpoint before its rollouts (delete the iteration's folder, and it is rolled out again)."
                    )
        self._label_head = self._head_from(folder / _HEAD_FILE)
        return data

    def _labels_folder(self, iteration: int) -> Path:
        # With the rollouts that they are of: set aside with them, and removed with them.
        return Path(self.args.output_dir) / ROLLOUTS / f"iteration-{iteration}" / SOFT_LABELS

    def _keep_head(self, path: Path) -> None:
        """Hidden states are the whole distribution with the head that read them, which training moves on from."""
        if self.args.teacher_top_k is not None:
            return
        with self._self_teacher.reading() as model:
            projection = LMHead(model).projection
            tensors = {"weight": projection.weight, "bias": projection.bias}
            # By all processes, which may have a part each.
            whole = copied_whole({name: tensor for name, tensor in tensors.items() if tensor is not None})
        if self.processes.writes_files:
            write_atomically(path, save({name: tensor.contiguous() for name, tensor in whole.items()}))

    def _head_from(self, path: Path) -> LMHead | None:
        if self.args.teacher_top_k is not None:
            return None
        # Moved afterwards: safetensors does not take every name of a device ("cpu:0", of one process of several).
        tensors = {name: tensor.to(self.accelerator.device) for name, tensor in load_file(path).items()}
        rows, width = tensors["weight"].shape
        projection = torch.nn.Linear(width, rows, bias="bias" in tensors, device="meta", dtype=tensors["weight"].dtype)
        projection.load_state_dict(tensors, assign=True)
        return LMHead(self.model).with_projection(projection.requires_grad_(False))
