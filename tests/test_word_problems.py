"""What the demo counts in an answer."""

from trl_exbias.demo.measure import Measurement
from trl_exbias.demo.report import print_table
from trl_exbias.demo.word_problems import right_calculations, word_problems


def test_every_solution_has_two_calculations_and_a_wrong_result_is_none():
    for row in word_problems(30, seed=4):
        solution = row["completion"][0]["content"]
        assert right_calculations(solution, solution) == 2
        assert right_calculations(solution + " " + solution, solution) == 2
        first = solution[: solution.index(" = ")]
        assert right_calculations(first + " = 999", solution) == 0
    assert right_calculations("She has 5 + 3 = 8 eggs, I think.", "5 + 3 = 8 eggs, 8 - 2 = 6") == 1


def test_the_table_shows_each_method_after_what_was_before(capsys):
    print_table({"before": Measurement(1.5, 0.25, 0.0), "BASH": Measurement(0.5, 1.75, 0.5)}, 8)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.split() == ["BASH", "1.500", "→", "0.500", "0.25", "→", "1.75", "0%", "→", "50%"]
