"""What HTTP processes remember for each other."""

import os

from service.memory import ROW, Memory, key_of


def number(memory: Memory, key: int) -> int | None:
    """The latest of a key."""
    found = memory.find(key)
    return found and found[1]


def test_the_latest_number_of_a_key_is_found_whichever_process_put_it() -> None:
    memory = Memory(3, 8)
    memory.begin(1)
    memory.put(7, 1)
    memory.put(7, 2)
    child = os.fork()
    if not child:
        memory.begin(2)
        memory.put(key_of("an id", 3), 15_999)
        os._exit(0)
    os.waitpid(child, 0)

    assert 2 == number(memory, 7)
    assert 15_999 == number(memory, key_of("an id", 3))
    assert number(memory, 8) is None


def test_the_oldest_is_forgotten_first() -> None:
    memory = Memory(1, 1)
    for key in range(1, ROW + 3):
        memory.put(key, key)

    assert [None, None, 3, 4] == [number(memory, key) for key in range(1, 5)]
    assert ROW + 2 == number(memory, ROW + 2)


def test_of_as_many_as_it_has_room_for_most_are_remembered_and_of_half_all() -> None:
    memory = Memory(1, 256)
    keys = [key_of(f"id-{index}", None) for index in range(256 * ROW)]
    for key in keys:
        memory.put(key, 1)
    found = [memory.find(key) is not None for key in keys]

    assert sum(found) > 0.9 * len(found)
    assert all(found[len(found) // 2 :])


def test_keys_tell_images_of_a_request_from_each_other_and_are_never_zero() -> None:
    assert len({key_of("a", None), key_of("a", 0), key_of("a", 1), key_of("b", None)}) == 4
    assert all(0 < key_of(part) < 1 << 64 for part in range(-2, 1000))
