"""Places and shares, without sockets: who is let in, and who has to go."""

import random
import resource
from collections import Counter

import pytest

from toska_mesh.gateway import admission
from toska_mesh.gateway.admission import NOBODY, Account, Admission, limit_key, places_for, share_of

LATER = 100.0


class Connection:
    """A client connection as far as admission knows it."""

    def __init__(self, address: str, idle_since: float = 0.0, is_trusted: bool = False) -> None:
        self.address = address
        self.is_trusted = is_trusted
        self.account: Account = NOBODY
        self.idle_since = idle_since
        self.is_idle = True
        self.has_just_asked = False
        self.is_closed = False

    def give_way(self) -> bool:
        if self.has_just_asked:
            return False
        self.is_closed = True
        self.is_idle = False
        return True


class House:
    """Admission with the set of connections that the proxy keeps."""

    def __init__(self, places: int, share: int = 1000) -> None:
        self.connections: set[Connection] = set()
        self.admission = Admission(self.connections, places, share)

    def come(
        self, address: str, now: float = 0.0, *, busy: bool = False, trusted: bool = False
    ) -> tuple[Connection, bool]:
        connection = Connection(address, now, trusted)
        connection.is_idle = not busy
        self.connections.add(connection)
        return connection, self.admission.admit(connection, address, trusted, now)

    def enter(self, address: str, now: float = 0.0, *, busy: bool = False, trusted: bool = False) -> Connection:
        connection, is_admitted = self.come(address, now, busy=busy, trusted=trusted)
        assert is_admitted
        return connection

    def go(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.admission.release(connection)


def test_the_longest_idle_of_the_heaviest_address_gives_way() -> None:
    house = House(5)
    light = house.enter("192.0.2.1", now=0)
    heavy = [house.enter("192.0.2.9", now=moment) for moment in (3, 1, 2)]
    busy = house.enter("192.0.2.9", now=0, busy=True)
    house.enter("192.0.2.5", LATER)
    assert [connection.is_closed for connection in heavy] == [False, True, False]
    house.enter("192.0.2.6", LATER)
    assert [connection.is_closed for connection in heavy] == [False, True, True]
    assert not light.is_closed
    assert not busy.is_closed
    assert (house.admission.held, house.admission.leaving, house.admission.evicted) == (5, 2, 2)


def test_a_newcomer_does_not_displace_those_who_hold_no_more_than_itself() -> None:
    house = House(4)
    others = [house.enter("192.0.2.1"), house.enter("192.0.2.2")]
    own = [house.enter("192.0.2.9", now=moment) for moment in (2, 1)]
    house.enter("192.0.2.9", LATER)
    assert [connection.is_closed for connection in own] == [False, True]
    assert not any(connection.is_closed for connection in others)


def test_with_nobody_idle_a_newcomer_is_refused() -> None:
    house = House(2)
    house.enter("192.0.2.9", busy=True)
    house.enter("192.0.2.9", now=LATER)  # idle, but for no time at all: its request may be on its way
    newcomer, is_admitted = house.come("192.0.2.1", LATER)
    assert not is_admitted
    assert (house.admission.held, house.admission.leaving, house.admission.refused) == (2, 1, 1)
    house.go(newcomer)
    assert (house.admission.held, house.admission.leaving) == (2, 0)


def test_one_that_has_just_asked_keeps_its_place() -> None:
    house = House(2)
    first, second = house.enter("192.0.2.9", now=1), house.enter("192.0.2.9", now=2)
    first.has_just_asked = True
    house.enter("192.0.2.1", LATER)
    assert (first.is_closed, second.is_closed) == (False, True)


def test_one_that_was_used_after_the_survey_is_not_the_longest_idle_any_more() -> None:
    house = House(3)
    connections = [house.enter("192.0.2.9", now=moment) for moment in (1, 2, 3)]
    house.enter("192.0.2.1", LATER)
    assert connections[0].is_closed
    connections[1].idle_since = LATER
    house.enter("192.0.2.2", LATER)
    assert [connection.is_closed for connection in connections] == [True, False, True]


def test_an_address_at_its_share_gets_no_more_even_in_an_empty_house() -> None:
    house = House(100, share=3)
    held = [house.enter("192.0.2.9", busy=True) for _ in range(3)]
    assert not house.come("192.0.2.9", LATER)[1]
    assert house.come("192.0.2.1", LATER)[1]
    held[0].is_idle = True
    house.enter("192.0.2.9", LATER, busy=True)
    assert held[0].is_closed
    house.go(held[1])
    assert house.come("192.0.2.9", LATER)[1]


def test_a_network_of_ipv6_is_one_client() -> None:
    house = House(100, share=2)
    house.enter("2001:db8:0:1::1", busy=True)
    house.enter("2001:db8:0:1:ffff::2", busy=True)
    assert not house.come("2001:db8:0:1::3")[1]
    assert house.come("2001:db8:0:2::1")[1]


def test_a_trusted_proxy_has_no_share_and_gives_way_last() -> None:
    house = House(6, share=2)
    proxies = [house.enter("10.0.0.1", trusted=True) for _ in range(4)]
    idle = house.enter("192.0.2.9")
    house.enter("192.0.2.9", busy=True)
    house.enter("10.0.0.1", LATER, trusted=True, busy=True)
    assert idle.is_closed
    assert not any(connection.is_closed for connection in proxies)
    house.enter("192.0.2.1", LATER, busy=True)
    assert sum(connection.is_closed for connection in proxies) == 1


def test_only_so_many_are_told_that_they_are_refused_and_an_address_over_its_share_fewer() -> None:
    house = House(1000, share=1)
    house.enter("192.0.2.9", busy=True)
    room = house.admission.max_leaving
    told = 0
    for _ in range(2 * room):
        house.come("192.0.2.9", LATER)
        told += house.admission.can_answer("192.0.2.9", False)
    assert told == room // 2
    house = House(1, share=1)
    house.enter("192.0.2.9", busy=True)
    for _ in range(house.admission.max_leaving // 2 + 1):
        house.come("192.0.2.9", LATER)
    assert not house.admission.can_answer("192.0.2.9", False)
    assert house.admission.can_answer("192.0.2.1", False)


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_right_after_any_history(seed: int) -> None:
    rng = random.Random(seed)
    house = House(places=30, share=9)
    now = 0.0
    for _ in range(600):
        now += rng.random()
        connections = sorted(house.connections, key=id)
        if connections and rng.random() < 0.35:
            house.go(rng.choice(connections))
        elif connections and rng.random() < 0.3:
            connection = rng.choice(connections)
            if not connection.is_closed:
                connection.is_idle = not connection.is_idle
                connection.idle_since = now
        else:
            trusted = rng.random() < 0.1
            address = "10.0.0.1" if trusted else f"192.0.2.{min(rng.randrange(12), rng.randrange(12))}"
            connection, is_admitted = house.come(address, now, busy=rng.random() < 0.5, trusted=trusted)
            if not is_admitted:
                connection.is_idle = False
                staying = [one for one in house.connections if one is not connection and is_held(one)]
                old = [one for one in staying if one.is_idle and one.idle_since <= now - admission.MIN_IDLE_SECONDS]
                if sum(one.address == address for one in staying) >= 9 and not trusted:
                    old = [one for one in old if one.address == address]
                assert not old or len(staying) >= 30
        held = [one for one in house.connections if is_held(one)]
        assert house.admission.held == len(held) <= 30
        assert house.admission.leaving == len(house.connections) - len(held)
        most = Counter(one.address for one in held if not one.is_trusted)
        assert house.admission.most_held == max(most.values(), default=0) <= 9
    for connection in list(house.connections):
        house.go(connection)
    assert (house.admission.held, house.admission.leaving, house.admission.most_held) == (0, 0, 0)


def is_held(connection: Connection) -> bool:
    return connection.account.key not in ("", "leaving")


def test_a_full_house_is_looked_through_seldom() -> None:
    looks = 0

    class Watched(Connection):
        def __getattribute__(self, name: str) -> object:
            nonlocal looks
            looks += name == "idle_since"
            return super().__getattribute__(name)

    connections: set[Connection] = set()
    places = 2000
    house = Admission(connections, places, places)
    for number in range(places):
        connection = Watched("192.0.2.9", number / places)
        connections.add(connection)
        assert house.admit(connection, "192.0.2.9", False, 1.0)
    for number in range(1000):
        newcomer = Watched(f"192.0.2.{number % 200}", LATER)
        connections.add(newcomer)
        assert house.admit(newcomer, newcomer.address, False, LATER)
    assert looks < 10 * places
    for connection in connections:
        connection.is_idle = False
    looks = 0
    for _ in range(1000):
        assert not house.admit(Connection("192.0.2.222"), "192.0.2.222", False, LATER + 1)
    assert looks < 10 * places


@pytest.mark.parametrize(
    ("places", "setting", "share"), [(20000, 0, 2000), (300, 0, 64), (10, 0, 10), (20000, 50, 50), (10, 50, 10)]
)
def test_the_share_of_one_address(places: int, setting: int, share: int) -> None:
    assert share_of(places, setting) == share


def test_there_are_no_more_places_than_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    assert places_for(20000) == (1024 - admission.OTHER_DESCRIPTORS) * 10 // 21
    assert places_for(20) == 20
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert places_for(20000) == 20000


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("no:address", "no:address"),
    ],
)
def test_who_shares_a_limit(address: str, key: str) -> None:
    assert limit_key(address) == key
