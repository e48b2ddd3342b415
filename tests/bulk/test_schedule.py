"""The bookkeeping of a run: each part ends once, whatever fails."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from dpt_zoo.bulk.schedule import MAX_TRIES, Schedule


@settings(deadline=None)
@given(failures=st.lists(st.integers(0, MAX_TRIES + 1), max_size=20), seed=st.integers(0, 99))
def test_each_part_is_finished_or_set_aside(failures: list[int], seed: int) -> None:
    left, finished, choices = list(failures), set[int](), random.Random(seed)
    schedule, busy = Schedule(range(len(failures))), list[int]()
    while schedule.num_left:
        while len(busy) < 3 and (part := schedule.take()) is not None:
            busy.append(part)
        part = busy.pop(choices.randrange(len(busy)))
        if left[part]:
            left[part] -= 1
            schedule.fail(part, "killed")
        else:
            assert part not in finished
            finished.add(part)
            schedule.finish()
    assert schedule.take() is None
    assert schedule.set_aside == {part: "killed" for part, number in enumerate(failures) if number >= MAX_TRIES}
    assert finished == set(range(len(failures))).difference(schedule.set_aside)


def test_a_stopped_schedule_hands_out_nothing() -> None:
    schedule = Schedule([1, 2])
    assert schedule.take() == 1
    schedule.stop()
    schedule.fail(1, "killed")
    assert schedule.take() is None
