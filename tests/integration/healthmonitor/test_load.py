"""The small form of the load in `bench/monitor_load.py`: real sockets, a tenth each hangs, refuses and flaps."""

from bench.monitor_load import Load, run_load


async def test_two_hundred_instances_twenty_of_which_hang_refuse_and_flap_each():
    load = Load(
        instances=200,
        hang=20,
        refuse=20,
        flap=20,
        interval_seconds=1.0,
        timeout_seconds=0.9,
        concurrency=64,
        seconds=14.0,
        warm_up_seconds=7.0,
        own_process=False,
    )
    result = await run_load(load)
    assert result["wrong_verdicts"] == []
    assert result["probes"] > 2000
    assert result["missed_deadlines"] < 100, result  # of some 2,700 slots, on a machine that others use too
    assert result["rss_growth_after_warm_up_mib"] < 8, result
