# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest

from primus.backends.megatron.reporting.run_page.curves import curve_of, figures_at_the_end, group_curves, work_of


def step(iteration: int, loss: float, *, turns: dict[str, tuple[float, int]]) -> dict[str, Any]:
    return {
        "iteration": iteration,
        "lm_loss": loss,
        "loss_by_turn": {name: {"loss": value, "targets": num} for name, (value, num) in turns.items()},
        "consumed_samples": 8 * iteration,
        "step_time_s": 0.5,
        "tokens_per_second": 1000.0,
        "grad_norm": None if iteration == 2 else 1.0,
    }


def evaluation(iteration: int, loss: float) -> dict[str, Any]:
    by_turn = {"10": {"loss": 9.0, "targets": 1}, "2": {"loss": loss, "targets": 30}}
    return {"iteration": iteration, "validation_loss": loss, "validation_loss_by_turn": by_turn}


def test_a_curve_has_a_point_for_each_line_with_a_value() -> None:
    lines = [step(1, 4.0, turns={}), evaluation(1, 5.0), step(2, 3.0, turns={}), step(3, 2.0, turns={})]
    assert curve_of(lines, "lm_loss").values_P.tolist() == [4.0, 3.0, 2.0]
    assert curve_of(lines, "grad_norm").steps_P.tolist() == [1, 3]
    assert curve_of(lines, "validation_loss").steps_P.tolist() == [1]
    assert len(curve_of([], "lm_loss")) == 0


def test_a_group_has_no_point_where_a_step_had_none_of_its_targets() -> None:
    lines = [step(1, 4.0, turns={"1": (4.0, 5), "9+": (8.0, 1)}), step(2, 3.0, turns={"1": (3.0, 5)})]
    first, rest = group_curves(lines, "turn", prefix="")
    assert (first.name, first.steps_P.tolist(), first.values_P.tolist()) == ("1", [1, 2], [4.0, 3.0])
    assert (rest.name, rest.steps_P.tolist()) == ("9+", [1])


def test_the_end_is_the_mean_over_the_targets_of_the_last_tenth_and_the_last_evaluation() -> None:
    lines = [step(number, 1.0, turns={"1": (float(number), number)}) for number in range(1, 21)]
    found = figures_at_the_end([*lines, evaluation(10, 3.0), evaluation(20, 2.0)], "turn")
    assert [group.name for group in found] == ["1", "2", "10"]
    assert found[0].train == pytest.approx((19 * 19 + 20 * 20) / 39)
    assert (found[0].num_train, found[0].validation, found[0].num_validation) == (39, None, 0)
    assert (found[1].train, found[1].num_train, found[1].validation, found[1].num_validation) == (None, 0, 2.0, 30)


def test_a_line_speaks_for_the_steps_since_the_line_before() -> None:
    assert work_of([evaluation(1, 2.0)]) is None
    work = work_of([step(10, 1.0, turns={}), evaluation(10, 2.0), step(25, 1.0, turns={})])
    assert work is not None
    assert (work.num_steps, work.num_sequences, work.seconds, work.num_tokens) == (25, 200, 12.5, 12500)


def test_few_points_are_not_smoothed_and_many_are() -> None:
    few = curve_of([step(number, 1.0, turns={}) for number in range(1, 50)], "lm_loss")
    many = curve_of([step(number, number % 2, turns={}) for number in range(1, 401)], "lm_loss")
    assert few.num_averaged == 1
    assert many.num_averaged == 10
    assert set(many.smoothed.values_P[9:].round(12).tolist()) == {0.5}
