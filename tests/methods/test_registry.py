"""What the registry says of a method without importing its trainer is what the trainer says."""

import pytest

from trl_exbias.settings.methods import methods


@pytest.mark.parametrize("name", methods())
def test_the_registry_says_what_the_trainer_says(name):
    method = methods()[name]
    trainer, plan = method.trainer_class(), method.phase_plan()
    assert method.config_class() is trainer.config_class
    assert type(plan) is type(trainer.phase_plan)
    assert (plan.title, plan.dataset_forms, plan.reads_documents) == (
        trainer._name,
        trainer.dataset_forms,
        trainer.reads_documents,
    )
