"""What a run works out once of its data, before joint training: the output of frozen layers, and the teacher's labels."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from ...core.joint_dataset import JointDataset
from ...core.tensor_cache import TensorCache
from ...run.run_directory import SOFT_LABELS, TRUNK_STATES
from .filling import Filler
from .label_form import LabelForm
from .served_teacher import ServedTeacher
from .several_teachers import SeveralTeachers, each_of
from .soft_label_phase import SoftLabelPhase
from .teacher import Teacher
from .teaching import TaughtTrainer
from .trunk_phase import TrunkPhase
from .trunk_use import planned_use


class PrecomputingTrainer(TaughtTrainer):
    """A [`TaughtTrainer`] that trains from what is kept on disk of each branch, where its settings say so."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        is_shown = not self.args.disable_tqdm and self.is_local_process_zero()
        filler = Filler(lambda: self.processes, lambda: self.preemption, self.leave_between_steps, is_shown)
        self._trunk = self._trunk_phase(filler)
        self._soft_labels = None if self.teacher is None else self._soft_label_phase(self.teacher, filler)

    def joint_dataset(self, rollouts: list[Dataset], rows: list[int] | None) -> JointDataset:
        data = super().joint_dataset(rollouts, rows)
        states = self._states_of(data) if self.args.cache_trunk else None
        if self._soft_labels is not None and self.args.cache_teacher:
            data.soft_labels = self._soft_labels.run(data)
        # Last: from here on, whoever looks at a row reads its states from disk.
        data.trunk_states, self.data_collator.with_states = states, states is not None
        return data

    def score_branches(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        kinds: torch.Tensor,
        weights: torch.Tensor,
        counts: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        inputs = dict(inputs)
        with self._trunk.known(inputs):
            return super().score_branches(model, inputs, kinds, weights, counts)

    def _states_of(self, data: JointDataset) -> TensorCache | None:
        if not self._layout_decided:
            self._decide_layout()
        gold, rolled_out = int(self.sequence_lengths.sum()), len(self.rows_to_roll_out(2))
        use = planned_use(self.args, gold, rolled_out, self.data_collator, self.aux_loss_enabled)
        return self._trunk.run(data, use)

    def _trunk_phase(self, filler: Filler) -> TrunkPhase:
        args, folder = self.args, Path(self.args.output_dir) / TRUNK_STATES
        return TrunkPhase(
            self.model, self.accelerator.autocast, args.rollout_batch_tokens, folder, self.log_now, filler
        )

    def _soft_label_phase(self, teacher: Teacher | ServedTeacher | SeveralTeachers, filler: Filler) -> SoftLabelPhase:
        args = self.args
        form = LabelForm(self.shared_vocab, args.teacher_top_k, args.kd_temperature, args.rollout_batch_tokens)
        folder = Path(args.soft_label_dir or Path(args.output_dir) / SOFT_LABELS)
        return SoftLabelPhase(each_of(teacher), form, folder, self.log_now, filler)
