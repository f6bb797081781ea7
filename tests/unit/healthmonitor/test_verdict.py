"""Rise and fall."""

from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.healthmonitor.verdict import FRESH, Judgement, Outcome, Thresholds
from toska_mesh.model import HealthStatus

LETTERS = {".": Outcome.SUCCESS, "x": Outcome.FAILURE, "t": Outcome.TIMEOUT, "?": Outcome.INCONCLUSIVE}
THRESHOLDS = Thresholds(fall=3, rise=2)


def judged(history: str, thresholds: Thresholds = THRESHOLDS) -> Judgement:
    return reduce(lambda judgement, letter: judgement.after(LETTERS[letter], thresholds), history, FRESH)


@pytest.mark.parametrize(
    ("history", "status"),
    [
        pytest.param("", HealthStatus.UNKNOWN, id="never probed"),
        pytest.param(".", HealthStatus.HEALTHY, id="the first answer settles it"),
        pytest.param("xx", HealthStatus.UNKNOWN, id="not yet judged"),
        pytest.param("xxx", HealthStatus.UNHEALTHY, id="down from the start"),
        pytest.param("x.", HealthStatus.HEALTHY, id="slow to start"),
        pytest.param("...xx", HealthStatus.HEALTHY, id="two lost probes flip nothing"),
        pytest.param("...xxx", HealthStatus.UNHEALTHY, id="the third does"),
        pytest.param(".xtx", HealthStatus.UNHEALTHY, id="timeouts are failures"),
        pytest.param(".xx.xx.xx.", HealthStatus.HEALTHY, id="failures must be in a row"),
        pytest.param("xxx.", HealthStatus.UNHEALTHY, id="one success is not yet a recovery"),
        pytest.param("xxx..", HealthStatus.HEALTHY, id="two are"),
        pytest.param("xxx.x.x.", HealthStatus.UNHEALTHY, id="successes must be in a row"),
        pytest.param("..xx????x", HealthStatus.UNHEALTHY, id="the monitor's own trouble does not break a row"),
        pytest.param("??????", HealthStatus.UNKNOWN, id="the monitor's own trouble says nothing"),
    ],
)
def test_thresholds_decide(history, status):
    assert judged(history).status is status


@given(history=st.text("xt?.", max_size=60), fall=st.integers(1, 6), rise=st.integers(1, 6))
def test_the_verdict_only_changes_on_a_full_row(history, fall, rise):
    thresholds = Thresholds(fall=fall, rise=rise)
    before = judged(history[:-1], thresholds).status
    after = judged(history, thresholds).status
    conclusive = history.replace("?", "").replace("t", "x")
    if after is HealthStatus.UNHEALTHY and before is not after:
        assert conclusive.endswith("x" * fall)
    if before is HealthStatus.UNHEALTHY and after is not before:
        assert after is HealthStatus.HEALTHY
        assert conclusive.endswith("." * rise)
    if conclusive.endswith("x" * fall):
        assert after is HealthStatus.UNHEALTHY
    if conclusive.endswith("." * rise):
        assert after is HealthStatus.HEALTHY


def test_thresholds_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Thresholds(fall=0)
