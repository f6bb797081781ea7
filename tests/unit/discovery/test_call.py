"""How a caller's patience becomes a deadline."""

import pytest

from toska_mesh.discovery.call import deadline_of


@pytest.mark.parametrize(
    ("seconds_left", "longest", "kept_back", "deadline"),
    [
        pytest.param(None, 30, 0.1, 105.0, id="not said"),
        pytest.param(10, 30, 0.1, 109.9, id="something is kept back for the answer"),
        pytest.param(0.2, 30, 0.1, 100.15, id="but not most of what there is"),
        pytest.param(120, 30, 0.1, 129.9, id="cut"),
        pytest.param(120, 600, 0.1, 219.9, id="a longer bound"),
        pytest.param(2, 600, 0.4, 101.6, id="more kept back"),
    ],
)
def test_a_deadline_leaves_time_to_answer_and_has_a_bound(
    seconds_left: float | None, longest: float, kept_back: float, deadline: float
) -> None:
    found = deadline_of(100.0, seconds_left, longest_seconds=longest, kept_back_seconds=kept_back)
    assert found == pytest.approx(deadline)
