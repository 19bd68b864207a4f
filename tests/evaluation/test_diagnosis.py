"""The diagnosis on tasks whose truth is known, with the truth as the judge, and with models in its place."""

import json
from dataclasses import replace

import pytest
import torch

from trl_exbias.bench.arms import ARMS
from trl_exbias.bench.model import dataset_of, new_model, starting_dataset, tokenizer_of
from trl_exbias.bench.tasks import TASKS
from trl_exbias.bench.training import train
from trl_exbias.evaluation.diagnosis import LOST, NOTHING, PARTLY, STAYS, UNREADABLE, diagnose, model_judge
from trl_exbias.rollouts import SamplingOptions, TransformersEngine


def oracle(task, rows):
    """The true distribution after gold, and after tokens that were drawn."""

    def judge(continuations, labels):
        tokens = torch.tensor(continuations)
        is_gold = torch.equal(tokens, rows.responses)
        true = task.true_after_gold(rows) if is_gold else task.true_after_own(rows, tokens)
        spare = torch.zeros(*true.shape[:2], len(task.words) + 3 - true.size(2))
        nll = -torch.cat([true, spare], 2).log()
        found = [nll.gather(2, torch.tensor(each).unsqueeze(2)).squeeze(2).tolist() for each in labels]
        return found, nll.min(2).values.tolist()

    return judge


def diagnosed(name, model=None, **more):
    task = TASKS[name]
    rows = task.make(64, seed=3)
    model = new_model(task, seed=0).eval() if model is None else model
    return diagnose(model, rows.prompts.tolist(), rows.responses.tolist(), oracle(task, rows), **more)


@pytest.mark.parametrize(("name", "verdict"), [("fix", STAYS), ("walk", LOST)])
def test_the_benchs_tasks_are_called_right(name, verdict):
    found = diagnosed(name)
    assert found.verdict == verdict and found.after_gold.mean == pytest.approx(1)
    assert found.kept.low <= found.kept.mean <= found.kept.high
    assert json.loads(json.dumps(found.as_dict()))["verdict"] == verdict


def test_shares_are_those_of_a_slow_count():
    task = TASKS["walk"]
    rows, model = task.make(20, seed=4), new_model(task, seed=1).eval()
    judge, seen = oracle(task, rows), []

    def watching(continuations, labels):
        seen.append([list(map(int, row)) for row in continuations])
        return judge(continuations, labels)

    found = diagnose(model, rows.prompts.tolist(), rows.responses.tolist(), watching, seed=7)
    mixed, gold = seen[1], rows.responses.tolist()
    transition = task.true_after_own(rows, torch.tensor(mixed))
    probable = places = accepted = differing = 0
    for r, (own, true) in enumerate(zip(mixed, gold, strict=True)):
        for j in range(len(own)):
            differing += own[j] != true[j]
            # Outside the nodes nothing is probable; among them a third or nothing, or all alike after no node.
            accepted += own[j] != true[j] and own[j] < 32 and transition[r, j, own[j]].item() > 0
            if j and own[j - 1] != true[j - 1]:
                places += 1
                probable += transition[r, j, true[j]].item() > 0
    assert found.num_places == places and found.after_other.mean == pytest.approx(probable / places)
    assert found.kept.mean == pytest.approx(found.after_other.mean)  # after gold, all of them are probable
    assert found.accepted.mean == pytest.approx(accepted / differing)
    assert found.num_rows == 20 and 0.4 * 20 * 24 < differing / found.changed.mean < 0.6 * 20 * 24


def test_a_model_that_writes_gold_has_nothing_to_learn():
    task = TASKS["walk"]
    rows, model = task.make(8, seed=0), new_model(task, seed=0).eval()
    prompts = rows.prompts.tolist()
    gold = TransformersEngine(model, 0).sample(prompts, SamplingOptions(max_new_tokens=12, seed=5))
    found = diagnose(model, prompts, gold, model_judge(model, prompts), seed=5)
    assert found.verdict == NOTHING and found.changed.mean == 0 and found.num_places == 0
    assert found.as_dict()["kept"]["mean"] is None
    assert found.judge_nll == pytest.approx(found.model_nll)


def test_a_reference_that_is_not_read_tells_nothing():
    task = TASKS["walk"]
    rows, model = task.make(16, seed=0), new_model(task, seed=0).eval()
    prompts, gold = rows.prompts.tolist(), rows.responses.tolist()
    shown = [prompt + response for prompt, response in zip(prompts, gold, strict=True)]
    found = diagnose(model, prompts, gold, model_judge(model, shown), shows_reference=True)
    assert found.verdict == UNREADABLE


@pytest.mark.parametrize("share", [0, 1.5])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match="`share` must be above 0"):
        diagnosed("fix", share=share)


def trained(task, tokens, width=64):
    rows = task.make(2000, seed=1)
    length = rows.responses.size(1) + 1
    data = starting_dataset(task, rows, 0)
    return train(ARMS[0], lambda: new_model(task, 0, width=width), tokenizer_of(task), data, length, tokens, 0)[0]


def shown_reference(task, rows):
    tokenizer = tokenizer_of(task)
    return [tokenizer(f"{row['prompt']}{row['completion']} = ")["input_ids"] for row in dataset_of(task, rows)]


@pytest.mark.slow
def test_a_teacher_that_was_trained_tells_a_walk():
    task = TASKS["walk"]
    model, teacher = trained(task, 300_000), trained(task, 300_000, width=96)
    rows = task.make(128, seed=5)
    prompts, gold = rows.prompts.tolist(), rows.responses.tolist()
    found = diagnose(model, prompts, gold, model_judge(teacher, prompts))
    print(found)
    assert found.verdict == LOST and found.accepted.mean > 0.9


@pytest.mark.slow
def test_the_model_itself_tells_that_a_wrong_start_can_be_fixed():
    task = TASKS["fix-reference"]
    rows, model = task.make(512, seed=5), trained(task, 3_000_000)
    prompts, gold = rows.prompts.tolist(), rows.responses.tolist()
    shown = shown_reference(task, rows)
    found = diagnose(model, prompts, gold, model_judge(model, shown), shows_reference=True)
    print(found)
    assert found.verdict == STAYS and found.judge_nll < 0.5 * found.model_nll
    # A teacher that saw gold alone continues the mistake: it cannot see that gold stays right.
    blind = diagnose(model, prompts, gold, model_judge(model, prompts))
    print(blind)
    assert blind.verdict in (LOST, PARTLY)


@pytest.mark.slow
def test_neither_a_model_that_reads_no_reference_nor_a_teacher_of_gold_alone_sees_that_gold_stays_right():
    task = TASKS["fix"]
    rows, model, teacher = task.make(512, seed=5), trained(task, 1_500_000), trained(task, 1_500_000, width=96)
    prompts, gold = rows.prompts.tolist(), rows.responses.tolist()
    found = diagnose(model, prompts, gold, model_judge(model, shown_reference(task, rows)), shows_reference=True)
    print(found)
    assert found.verdict == UNREADABLE
    blind = diagnose(model, prompts, gold, model_judge(teacher, prompts))
    print(blind)
    assert blind.verdict == LOST and blind.kept.mean < 0.1
    assert diagnose(model, prompts, gold, oracle(task, rows)).verdict == STAYS


@pytest.mark.slow
def test_a_model_that_can_copy_its_reference_tells_a_walk_all_the_same():
    task = replace(TASKS["walk"], reads_reference=True)
    rows, model = task.make(128, seed=5), trained(task, 2_000_000)
    prompts, gold = rows.prompts.tolist(), rows.responses.tolist()
    judge = model_judge(model, shown_reference(task, rows))
    found = diagnose(model, prompts, gold, judge, shows_reference=True)
    print(found)
    assert found.verdict == LOST and found.judge_nll < 0.1 * found.model_nll
