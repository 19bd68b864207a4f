"""A teacher at an address is asked by each process for labels of its own share, and for no label twice."""

from collections import Counter

import pytest

from ..marks import needs_deepspeed
from ..methods.dad_dagger.serving import TeacherServer
from ..tiny import byte_tokenizer, tiny_model
from .runs import check_engine, check_equal, run


@pytest.mark.parametrize("engine", ["ddp", pytest.param("zero3", marks=[needs_deepspeed, pytest.mark.slow])])
def test_two_processes_share_the_questions(engine, tmp_path, httpserver):
    server = TeacherServer(httpserver, tiny_model(seed=7), byte_tokenizer())
    made, questions = [], []
    for name, processes in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        server.bodies.clear()
        given = {"teacher_server_base_url": server.url}
        made.append(run("dad-dagger-served", tmp_path / name, processes, engine if processes == 2 else "ddp", **given))
        questions.append(Counter(server.prompts))
    one, two = made
    check_engine(two, engine)
    check_equal(one, two)
    # A probe before training, and every trajectory with its branch.
    assert questions[1].keys() == questions[0].keys()
    labels = {prompt: times for prompt, times in questions[0].items() if len(prompt) == 12}
    assert labels and set(labels.values()) == {1}
    assert all(questions[1][prompt] == 1 for prompt in labels)
