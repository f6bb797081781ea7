"""Deadlines are due at their moment: none early, none forgotten."""

from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.registryd.expiry import Deadlines

KEYS = st.sampled_from("abc")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, st.integers(0, 20)),
        st.tuples(st.just("clear"), KEYS, st.just(0)),
        st.tuples(st.just("pass"), st.just(""), st.integers(0, 10)),
        st.tuples(st.just("postpone"), st.just(""), st.integers(0, 10)),
    ),
    max_size=60,
)


@given(STEPS)
def test_behaves_like_a_plain_table_of_deadlines(steps: list[tuple[str, str, int]]) -> None:
    deadlines: Deadlines[str] = Deadlines()
    table: dict[str, int] = {}
    now = 0
    for step, key, amount in steps:
        match step:
            case "set":
                deadlines.set(key, now + amount)
                table[key] = now + amount
            case "clear":
                deadlines.clear(key)
                table.pop(key, None)
            case "postpone":
                deadlines.postpone(amount)
                table = {name: at + amount for name, at in table.items()}
            case _:
                now += amount
                due = {name for name, at in table.items() if at <= now}
                assert set(deadlines.take_due(now)) == due
                table = {name: at for name, at in table.items() if name not in due}
        assert {name: deadlines.get(name) for name in "abc" if name in deadlines} == table
        following = deadlines.next_at()
        assert not table or (following is not None and following <= min(table.values()))


def test_what_is_longest_overdue_comes_first() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for key, at in (("late", 1.0), ("later", 2.0), ("not yet", 9.0)):
        deadlines.set(key, at)
    assert deadlines.take_due(3.0) == ["late", "later"]


def test_ten_thousand_beats_of_one_key_leave_one_entry_in_the_heap() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for beat in range(10_000):
        deadlines.set("a", beat + 30.0)
    assert len(deadlines._heap) == 1
