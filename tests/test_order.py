"""The order of the data and the learning rate: pure functions of where the run is."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from nexa_core.config import training as settings
from nexa_train.optim import learning_rate
from nexa_train.order import Plan, derive_seed, epoch_order


def plan(**changes: int | None) -> Plan:
    values = {"num_rows": 103, "batch_size": 10, "num_microbatches": 1, "epochs": 3, "max_steps": None, "seed": 7}
    return Plan(**{**values, **changes})  # type: ignore[arg-type]


def test_an_epoch_sees_every_row_once() -> None:
    rows = np.concatenate([batch for step in range(11) for batch in plan().microbatches(step)])
    assert sorted(rows) == list(range(103))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [tuple(epoch_order(seed, epoch, 103)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


def test_the_order_is_pinned() -> None:
    """A change here breaks the resuming of every run that exists."""
    assert epoch_order(0, 0, 8).tolist() == [0, 1, 7, 3, 2, 4, 6, 5]
    assert derive_seed(0, "weights") == 5147875554478041081


def test_the_order_looks_random() -> None:
    order = epoch_order(3, 0, 10_000)
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.03
    assert abs((order[1:] > order[:-1]).mean() - 0.5) < 0.02


@pytest.mark.parametrize("accumulation", [1, 2, 3, 10])
def test_a_batch_holds_the_same_rows_however_it_is_cut(accumulation: int) -> None:
    for step in (0, 5, 10, 11, 32):
        whole = plan().microbatches(step)[0]
        cut = plan(num_microbatches=accumulation).microbatches(step)
        assert np.concatenate(cut).tolist() == whole.tolist()
        assert all(len(part) for part in cut)


def test_max_steps_ends_a_run_early_and_never_lengthens_it() -> None:
    assert plan().num_steps == 33
    assert plan(max_steps=5).num_steps == 5
    assert plan(max_steps=500).num_steps == 33


SCHEDULES = [
    (settings.ConstantSchedule(name="constant", warmup_steps=2), [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    (settings.LinearSchedule(name="linear"), [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
    (
        settings.LinearSchedule(name="linear", warmup_steps=5, final_fraction=0.5),
        [0.2, 0.4, 0.6, 0.8, 1, 1, 0.9, 0.8, 0.7, 0.6],
    ),
    (settings.StepSchedule(name="step", every_steps=4, factor=0.5), [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]),
]


@pytest.mark.parametrize(("schedule", "rates"), SCHEDULES)
def test_a_schedule_has_its_shape(schedule: settings.Schedule, rates: list[float]) -> None:
    ours = [learning_rate(step, schedule=schedule, full=2.0, num_steps=10) for step in range(10)]
    assert ours == pytest.approx([2.0 * rate for rate in rates])


def test_the_cosine_schedule_falls_from_full_to_its_final_fraction() -> None:
    schedule = settings.CosineSchedule(name="cosine", final_fraction=0.1)
    rates = [learning_rate(step, schedule=schedule, full=1.0, num_steps=100) for step in range(101)]
    assert rates[0] == 1.0
    assert rates[50] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))


def test_threads_far_apart_read_the_same_order() -> None:
    whole = plan(num_rows=50, batch_size=50, epochs=400)
    expected = [epoch_order(7, step, 50) for step in range(400)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda step: whole.microbatches(step)[0], range(400)))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
