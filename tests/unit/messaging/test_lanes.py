"""Order of delivery: one of a lane at a time, whatever is delivered, refused or lost."""

from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.messaging.lanes import Lanes


def filled(*lanes: str) -> Lanes:
    order = Lanes()
    for seq, lane in enumerate(lanes, 1):
        order.add(seq, lane)
    return order


def test_one_message_of_each_lane_goes_at_a_time_oldest_first():
    order = filled("a", "a", "b", "c", "b")
    assert order.take(10) == [(1, "a"), (3, "b"), (4, "c")]
    assert not order.has_ready
    order.done("b")
    assert order.take(10) == [(5, "b")]


def test_no_more_than_asked_for():
    order = filled("a", "b", "c")
    assert order.take(2) == [(1, "a"), (2, "b")]
    assert order.take(2) == [(3, "c")]


def test_a_refused_message_stays_first_and_waits():
    order = filled("a", "a", "b")
    order.take(10)
    order.hold("a")
    assert not order.has_ready
    order.done("b")
    order.add(4, "a")
    assert not order.has_ready
    order.release("a")
    assert order.take(10) == [(1, "a")]


def test_after_a_lost_connection_every_lane_begins_with_its_first_undelivered():
    order = filled("a", "b", "b", "c")
    order.take(10)
    order.done("b")
    order.hold("c")
    order.reset()
    assert order.take(10) == [(1, "a"), (3, "b"), (4, "c")]


def test_releasing_what_is_not_held_changes_nothing():
    order = filled("a", "a")
    order.take(1)
    order.release("a")
    order.release("unknown")
    assert not order.has_ready


@given(st.lists(st.sampled_from("abc"), max_size=30), st.randoms(use_true_random=False))
def test_whatever_happens_a_lane_is_delivered_in_order_and_completely(lanes, chance):
    order, under_way, held = Lanes(), {}, set()
    delivered = {lane: [] for lane in "abc"}
    waiting = list(enumerate(lanes, 1))
    while waiting or under_way or held or order.has_ready:
        step = chance.random()
        if waiting and step < 0.4:
            order.add(*waiting.pop(0))
        elif under_way and step < 0.6:
            lane = chance.choice(sorted(under_way))
            delivered[lane].append(under_way.pop(lane))
            order.done(lane)
        elif under_way and step < 0.7:
            lane = chance.choice(sorted(under_way))
            del under_way[lane]
            order.hold(lane)
            held.add(lane)
        elif held and step < 0.8:
            order.release(held.pop())
        elif step > 0.97:
            under_way.clear()
            held.clear()
            order.reset()
        else:
            for seq, lane in order.take(chance.randint(1, 3)):
                assert lane not in under_way
                assert lane not in held
                under_way[lane] = seq
    for lane in "abc":
        assert delivered[lane] == [seq for seq, name in enumerate(lanes, 1) if name == lane]
