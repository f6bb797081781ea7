"""The ordered map stays what a sorted dictionary would be, whatever is done to it."""

from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.registryd.ordered import SortedMap

KEY = st.text("ab/", max_size=4)


@given(st.lists(st.tuples(st.booleans(), KEY, st.integers())), KEY)
def test_behaves_like_a_sorted_dict(steps: list[tuple[bool, str, int]], prefix: str) -> None:
    ours: SortedMap[int] = SortedMap()
    plain: dict[str, int] = {}
    for is_set, key, value in steps:
        if is_set:
            ours.set(key, value)
            plain[key] = value
        else:
            assert ours.pop(key) == plain.pop(key, None)
        assert ours.get(key) == plain.get(key)
    assert list(ours.values()) == [plain[key] for key in sorted(plain)]
    assert ours.under(prefix) == [plain[key] for key in sorted(plain) if key.startswith(prefix)]
    assert len(ours) == len(plain)
