"""What HTTP processes remember for each other."""

import os

from service.memory import Memory, key_of


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

    assert 2 == (memory.find(7) or (0, 0))[1]
    assert 15_999 == (memory.find(key_of("an id", 3)) or (0, 0))[1]


def test_the_oldest_is_forgotten_first() -> None:
    memory = Memory(1, 4)
    for key in range(1, 7):
        memory.put(key, key)

    assert [None, None, 3, 4, 5, 6] == [(found := memory.find(key)) and found[1] for key in range(1, 7)]


def test_bytes_of_two_keys_that_stand_side_by_side_are_no_key() -> None:
    memory = Memory(1, 4)
    memory.put(1 << 32, 1)
    memory.put(1 << 32, 2)

    assert memory.find(1) is None
    assert memory.find(1 << 32) is not None


def test_keys_tell_images_of_a_request_from_each_other_and_are_never_zero() -> None:
    assert len({key_of("a", None), key_of("a", 0), key_of("a", 1), key_of("b", None)}) == 4
    assert all(0 < key_of(number) < 1 << 64 for number in range(-2, 1000))
