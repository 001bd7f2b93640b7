"""Places for bodies in the arena."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from service.slots import Slots


@given(st.lists(st.one_of(st.integers(1, 400), st.none()), max_size=60))
def test_slots_never_overlap_and_all_room_comes_back(actions: list[int | None]) -> None:
    slots = Slots(100, 1100)
    held: list[tuple[int, int]] = []
    for action in actions:
        if action is None and held:
            slots.give(*held.pop(len(held) // 2))
        elif action is not None and (offset := slots.take(action)) is not None:
            held.append((offset, action))
        spans = sorted([*((start, start + length) for start, length in held), *slots.free])
        assert spans[0][0] == 100
        assert spans[-1][1] == 1100
        assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    for slot in held:
        slots.give(*slot)

    assert [(100, 1100)] == slots.free


def test_a_slot_that_does_not_fit_is_refused() -> None:
    slots = Slots(0, 10)

    assert [0, None, 6] == [slots.take(6), slots.take(5), slots.take(4)]
