"""Where a range of keys ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.sdk.kv.sqlite import after_prefix


@pytest.mark.parametrize(
    ("prefix", "after"), [("a:", "a;"), ("a\U0010ffff", "b"), ("\ud7ff", "\ue000"), ("a:\U0010ffff\U0010ffff", "a;")]
)
def test_the_next_prefix(prefix: str, after: str) -> None:
    assert after_prefix(prefix) == after


@given(st.text(), st.text(), st.text())
def test_it_comes_after_all_that_begin_with_the_prefix_and_before_all_else(prefix: str, rest: str, other: str) -> None:
    whole = f"a:{prefix}"
    end = after_prefix(whole).encode()
    assert whole.encode() <= (whole + rest).encode() < end
    assert (whole.encode() <= other.encode() < end) == other.startswith(whole)
