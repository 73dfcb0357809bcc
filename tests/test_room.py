"""A call with room: its frames lie in one piece, and garbage is collected again afterwards, also where it raises."""

import gc

import pytest

from deeptaylor.room import with_room


def test_it_gives_what_the_call_gives():
    assert with_room(lambda: (gc.isenabled(), 3)) == (False, 3)
    assert gc.isenabled()


def test_collection_comes_back_after_an_error():
    with pytest.raises(ZeroDivisionError):
        with_room(lambda: 1 // 0)
    assert gc.isenabled()


def test_it_leaves_collection_off_for_who_switched_it_off():
    gc.disable()
    try:
        with_room(lambda: None)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_calls_may_nest_as_deep_as_without():
    def deep(n: int) -> int:
        return 0 if n == 0 else 1 + deep(n - 1)

    assert with_room(lambda: deep(700)) == 700
