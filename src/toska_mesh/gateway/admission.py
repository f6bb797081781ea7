"""Who may hold a client connection: a house with so many places, of which one address gets only its share.

Counts change when a connection comes or goes, never on a request. When the house is full, a newcomer takes the place of
a connection that does nothing: the longest idle one of the address that holds most. So idle connections cost nobody a
place, and an address can only be kept out by others that are busy. Who is idle is looked up in surveys of all
connections, a few in a second at most and none while there is room.

A trusted proxy speaks for many clients: its connections have no share to exceed, count as light when they come, and
give way last. What a connection is and how it closes is the client's part (see `Guest`).
"""

import heapq
import ipaddress
import resource
from collections.abc import Callable, Collection
from typing import Protocol

SHARE_OF_ONE_CLIENT = 10
"""Without a setting an address gets the tenth part of the house: nine others may be as greedy."""

LEAST_SHARE = 64
"""No address gets less, be the house ever so small: an office or a phone network may share one address."""

MIN_IDLE_SECONDS = 0.5
"""Idle for less is no reason to go: the next request, or the first, may be on its way."""

SURVEY_SECONDS = 0.5
"""How long a survey of the idle connections is believed."""

SMALL_HOUSE = 256
"""So few connections are looked through for every newcomer, if need be."""

OTHER_DESCRIPTORS = 256
"""Files, pipes, the admin port, the registry's connections, probes."""


class Account:
    """What one address holds. Owned by `Admission`."""

    __slots__ = ("connections", "is_exempt", "key")

    def __init__(self, key: str, is_exempt: bool = False) -> None:
        self.key = key
        self.connections = 0
        self.is_exempt = is_exempt


NOBODY = Account("")
"""Of a connection that has not been counted yet, or is counted no more."""


class Counted(Protocol):
    """What holds a place."""

    account: Account
    """Set and read by `Admission` alone; `NOBODY` at first."""


class Guest(Counted, Protocol):
    """A client connection, seen from here."""

    idle_since: float

    @property
    def is_idle(self) -> bool:
        """Between two requests, and nothing of the next one has come."""

    def give_way(self) -> bool:
        """Close now; False when a request has just come after all."""


class Admission:
    """Owner of all counts. `guests` are all open connections, also those that have no place any more.

    `places` is the size of the house, `share` the part that one address may hold. Times are seconds of any one clock.
    """

    def __init__(self, guests: Collection[Guest], places: int, share: int) -> None:
        self._guests = guests
        self.places = places
        self.share = share
        self.held = 0
        """Places that are taken."""
        self.refused = 0
        self.evicted = 0
        self._accounts: dict[str, Account] = {}
        self._proxies = Account("trusted proxies", is_exempt=True)
        self._leaving = Account("leaving")
        """Refused and evicted connections that are still open: they get their answer, and time to read it."""
        self.max_leaving = max(LEAST_SHARE, places // SHARE_OF_ONE_CLIENT)
        self._surveyed_at = -SURVEY_SECONDS
        self._idle: dict[Account, list[tuple[float, Guest]]] = {}
        """By account: its idle connections with the moment since when, the longest idle last."""
        self._heaviest: list[tuple[int, int, Account]] = []
        """A heap of those accounts without the exempt one; counts in it are those of the survey, negative."""

    @property
    def leaving(self) -> int:
        """Connections that are open without a place."""
        return self._leaving.connections

    def admit(self, guest: Guest, address: str, is_trusted: bool, now: float) -> bool:
        """Give a place to a connection that has just come, if need be that of an idle one."""
        account = self._account(address, is_trusted)
        if not account.is_exempt and account.connections >= self.share:
            has_place = self._replace_own(account, now)
        else:
            has_place = self.held < self.places or self._make_room(account, now)
        if not has_place:
            self.refused += 1
            self._count(guest, self._leaving)
            return False
        self.held += 1
        if not account.connections and not account.is_exempt:
            self._accounts[account.key] = account
        self._count(guest, account)
        return True

    def can_answer(self, address: str, is_trusted: bool) -> bool:
        """Whether a refused connection is told so; otherwise too many are being told already, and it is cut.

        Half of that room is kept for addresses that are within their share.
        """
        account = self._account(address, is_trusted)
        is_over = not account.is_exempt and account.connections >= self.share
        return self.leaving <= (self.max_leaving // 2 if is_over else self.max_leaving)

    def hand_over(self, guest: Guest, successor: Counted) -> None:
        """The connection belongs to somebody else from now on: a tunnel takes as much room."""
        guest.account, successor.account = NOBODY, guest.account

    def release(self, guest: Counted) -> None:
        """The connection is closed."""
        account, guest.account = guest.account, NOBODY
        if account is NOBODY:
            return
        account.connections -= 1
        if account is self._leaving:
            return
        self.held -= 1
        if not account.connections:
            self._accounts.pop(account.key, None)

    @property
    def most_held(self) -> int:
        """What the address with most connections holds, trusted proxies apart; looked up now."""
        return max((account.connections for account in self._accounts.values()), default=0)

    # -- inside

    def _account(self, address: str, is_trusted: bool) -> Account:
        if is_trusted:
            return self._proxies
        key = limit_key(address)
        return self._accounts.get(key) or Account(key)

    def _count(self, guest: Counted, account: Account) -> None:
        guest.account = account
        account.connections += 1

    def _replace_own(self, account: Account, now: float) -> bool:
        return self._with_survey(now, lambda: self._evict_from(account))

    def _make_room(self, newcomer: Account, now: float) -> bool:
        return self._with_survey(now, lambda: self._evict_for(newcomer))

    def _with_survey(self, now: float, evict: Callable[[], bool]) -> bool:
        if now - self._surveyed_at >= SURVEY_SECONDS:
            self._survey(now)
        elif evict():
            return True
        elif now == self._surveyed_at and len(self._guests) > SMALL_HOUSE:
            return False  # the clock is coarse: nothing of weight can have changed since
        else:
            self._survey(now)
        return evict()

    def _survey(self, now: float) -> None:
        """Look through all connections for idle ones."""
        idle: dict[Account, list[tuple[float, Guest]]] = {}
        latest = now - MIN_IDLE_SECONDS
        for guest in self._guests:
            if guest.idle_since <= latest and guest.is_idle and guest.account is not self._leaving:
                idle.setdefault(guest.account, []).append((guest.idle_since, guest))
        for guests in idle.values():
            guests.sort(key=_moment, reverse=True)
        self._idle = idle
        self._heaviest = [
            (-account.connections, number, account) for number, account in enumerate(idle) if not account.is_exempt
        ]
        heapq.heapify(self._heaviest)
        self._surveyed_at = now

    def _evict_for(self, newcomer: Account) -> bool:
        """From the heaviest address if it holds more than the newcomer's, else from the same, else from a proxy."""
        weight = 0 if newcomer.is_exempt else newcomer.connections
        heaviest = self._heaviest
        while heaviest:
            known, number, account = heaviest[0]
            if -known != account.connections:
                heapq.heapreplace(heaviest, (-account.connections, number, account))  # its count has changed since
            elif account.connections <= weight:
                break
            elif self._evict_from(account):
                return True
            else:
                heapq.heappop(heaviest)
        return self._evict_from(newcomer) or self._evict_from(self._proxies)

    def _evict_from(self, account: Account) -> bool:
        """Close the longest idle connection of this account; False when it has none."""
        idle = self._idle.get(account)
        while idle:
            since, guest = idle.pop()
            if guest.account is account and guest.idle_since == since and guest.is_idle and guest.give_way():
                self.release(guest)
                self._count(guest, self._leaving)
                self.evicted += 1
                return True
        return False


def _moment(entry: tuple[float, Guest]) -> float:
    return entry[0]


def limit_key(address: str) -> str:
    """Who shares a limit: an IPv4 address, or the /64 network of an IPv6 one, as a host owns at least that."""
    if ":" not in address:
        return address
    try:
        return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
    except ValueError:
        return address


def share_of(places: int, setting: int) -> int:
    """How many connections one address may hold: `setting`, or with 0 its part of the house."""
    return min(places, setting or max(LEAST_SHARE, places // SHARE_OF_ONE_CLIENT))


def raise_descriptor_limit() -> None:
    """Let this process open as many files as the system allows: the usual soft limit of 1024 is a relic of select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def places_for(wanted: int) -> int:
    """So many of the wanted places as there are file descriptors for; without one nobody can even be told "no".

    Each client may need a second one, to an instance, and a tenth more clients may be leaving.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, (soft - OTHER_DESCRIPTORS) * SHARE_OF_ONE_CLIENT // (2 * SHARE_OF_ONE_CLIENT + 1)))
