"""How long and how often an instance is asked, as its service's metadata says; and how any such metadata is read. Pure.

Registration may be open to everybody in the network, so metadata may only tighten what the sender set, unless the
sender says otherwise. Of several instances the newest registration with a value that counts decides. Whatever does not
count is kept with the reason: a value that cannot be read, one that loosens, one that a newer registration overrules.

The gateway reads more keys than these in the same way (`gateway.routepolicy`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from types import MappingProxyType
from typing import Final, Generic, TypeVar

from toska_mesh.model import Instance
from toska_mesh.model import metadata as keys
from toska_mesh.resilience import RetryPolicy
from toska_mesh.router.eligibility import registration_order

MAX_RETRIES: Final = 20
"""As many as `GATEWAY_RETRY_COUNT` may be."""

_MAX_DIGITS: Final = 12
_SHOWN_CHARS: Final = 80
_SHOWN_RIVALS: Final = 5
_MAX_NOTES: Final = 50
"""Of each kind and service: any number of registrations may hold any nonsense."""

_NOT_OURS: Final = keys.BOOKKEEPING | {keys.DRAINING}
_NOTHING: Mapping[str, str] = MappingProxyType({})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ignored:
    """A value that would loosen what the operator set, and so does not count."""

    key: str
    value: str
    instance: str
    """The newest that says so."""
    instances: int
    """How many say so."""
    operator: str
    """What holds instead."""
    reason: str


@dataclass(frozen=True, slots=True)
class Chosen(Generic[T]):
    """A value that counts, and whose it is."""

    value: T
    instance: Instance


class MetadataReading:
    """One look at what the instances of a service say. Keeps whose values hold and what does not count.

    `may_relax`: whether metadata may go beyond what the sender set.
    """

    reading: Instance
    """Whose value is being looked at."""

    def __init__(self, instances: Iterable[Instance], may_relax: bool) -> None:
        carriers = [instance for instance in instances if any(map(is_policy_key, instance.metadata))]
        # Of registrations with one id (it is unique on a node only) the newest counts, as everywhere.
        by_id = {instance.id: instance for instance in sorted(carriers, key=registration_order)}
        self.carriers: Sequence[Instance] = list(reversed(by_id.values()))
        """Instances that say anything, the newest registration first."""
        self.may_relax = may_relax
        self.origins: dict[str, str] = {}
        """By metadata key: the instance whose value holds."""
        self.ignored: dict[tuple[str, str, str], Ignored] = {}
        self.warnings: dict[str, None] = {}

    # -- keys that more than one reader knows

    def timeouts(self, response_timeout: float, total_timeout: float) -> tuple[float, float]:
        """Of a try and of all tries. `toska-timeout-ms` means both, unless the other key says more about the try."""
        both = self.choose(keys.TIMEOUT_MS, parse_ms, self.up_to(total_timeout * 1000))
        one_try = self.choose(keys.TRY_TIMEOUT_MS, parse_ms, self.up_to(response_timeout * 1000))
        total = both.value / 1000 if both else total_timeout
        response = response_timeout
        if one_try:
            response = one_try.value / 1000
        elif both:
            if self.may_relax or total <= response:
                response = total
                self.origins[keys.TRY_TIMEOUT_MS] = both.instance.id
            else:
                reason = "one try may not wait longer than that; for all tries together the value holds"
                self.ignore(keys.TIMEOUT_MS, both.instance, f"{response * 1000:.15g}", reason)
        return min(response, total), total

    def number(self, key: str, parse: Callable[[str], int], own: int, *, inf_at_zero: bool = False) -> int:
        """What holds: the metadata's number where it is not above ours. `inf_at_zero`: 0 means no limit."""
        largest = inf if inf_at_zero and own == 0 else own
        chosen = self.choose(key, parse, self.up_to(largest, inf_at_zero=inf_at_zero))
        return chosen.value if chosen else own

    def retries(self, own: int) -> int:
        """Tries after the first one."""
        return self.number(keys.RETRIES, parse_retries, own)

    # -- what is common to all keys

    def choose(self, key: str, parse: Callable[[str], T], why_not: Callable[[T], tuple[str, str]]) -> Chosen[T] | None:
        """The newest value that can be read and counts. `why_not`: what holds instead and the reason, or nothing."""
        chosen: Chosen[T] | None = None
        rivals: dict[str, int] = {}
        for instance in self.carriers:
            text = instance.metadata.get(key)
            if text is None:
                continue
            self.reading = instance
            try:
                value = parse(text.strip())
            except ValueError as exc:
                self.warn(f"{key} {shown(text)} of {shown(instance.id)} {exc}; it is ignored")
                continue
            instead, reason = why_not(value)
            if reason:
                self.ignore(key, instance, instead, reason)
            elif chosen is None:
                chosen = Chosen(value, instance)
                self.origins[key] = instance.id
            elif value != chosen.value:
                rivals[f"{shown(instance.id)} says {shown(text)}"] = 1
        if chosen is not None and rivals:
            told = "; ".join(list(rivals)[:_SHOWN_RIVALS])
            more = f"; and {len(rivals) - _SHOWN_RIVALS} more" if len(rivals) > _SHOWN_RIVALS else ""
            self.warn(
                f"instances disagree on {key}: {shown(chosen.instance.id)}, registered last, says "
                f"{shown(chosen.instance.metadata[key])} and counts; {told}{more}"
            )
        return chosen

    def up_to(self, largest: float, *, inf_at_zero: bool = False) -> Callable[[int], tuple[str, str]]:
        """For `choose`: numbers count that are not above this."""

        def why_not(value: int) -> tuple[str, str]:
            asked = inf if inf_at_zero and value == 0 else value
            if asked <= largest or self.may_relax:
                return "", ""
            return f"{largest:.15g}", "metadata can lower this, it cannot raise it"

        return why_not

    def always(self, value: object) -> tuple[str, str]:
        """For `choose`: whatever can be read counts."""
        return "", ""

    def ignore(self, key: str, instance: Instance, instead: str, reason: str) -> None:
        """Note a value that would loosen something."""
        text = instance.metadata[key]
        known = self.ignored.get((key, text, reason))
        if known is None and len(self.ignored) >= _MAX_NOTES:
            return
        self.ignored[key, text, reason] = (
            replace(known, instances=known.instances + 1)
            if known
            else Ignored(key, text[:_SHOWN_CHARS], instance.id, 1, instead, reason)
        )

    def warn(self, text: str) -> None:
        """Say something once."""
        if len(self.warnings) < _MAX_NOTES:
            self.warnings[text] = None

    def name_unknown_keys(self) -> None:
        """Warn of keys that look like the mesh's and are not."""
        unknown = {
            key: instance.id
            for instance in self.carriers
            for key in instance.metadata
            if is_policy_key(key) and key not in keys.ROUTE_POLICY
        }
        for key, instance_id in sorted(unknown.items()):
            self.warn(f"{shown(key)} of {shown(instance_id)} is no key that the gateway knows; it is ignored")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often requests to one service are tried."""

    response_timeout: float = 30.0
    """Longest wait for an answer's head in one try, in seconds."""
    total_timeout: float = 60.0
    """The same for all tries together."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    origins: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """By metadata key: the instance whose value holds. The rest is the sender's."""
    ignored: tuple[Ignored, ...] = ()
    warnings: tuple[str, ...] = ()


def tightened(default: Patience, instances: Iterable[Instance]) -> Patience:
    """What holds for a service with these instances. Never raises, whatever their metadata holds."""
    reading = MetadataReading(instances, may_relax=False)
    if not reading.carriers:
        return default
    response, total = reading.timeouts(default.response_timeout, default.total_timeout)
    retries = reading.retries(default.retry.count)
    return Patience(
        response,
        total,
        replace(default.retry, count=retries),
        MappingProxyType(reading.origins),
        tuple(reading.ignored.values()),
        tuple(reading.warnings),
    )


def is_policy_key(key: str) -> bool:
    """Whether the key asks something of those who send requests."""
    return key.startswith(keys.OWN_PREFIX) and key not in _NOT_OURS


def shown(text: str) -> str:
    """For messages: quoted, and cut when it is long."""
    return repr(text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…")


def whole_number(text: str) -> int:
    """Digits alone. Raises ValueError in words that follow the value."""
    if not (text.isascii() and text.isdigit()) or len(text) > _MAX_DIGITS:
        raise ValueError("is no whole number")
    return int(text)


def parse_ms(text: str) -> int:
    """Milliseconds above 0."""
    if not (milliseconds := whole_number(text)):
        raise ValueError("is no number of milliseconds above 0")
    return milliseconds


def parse_retries(text: str) -> int:
    """0 to MAX_RETRIES."""
    if (count := whole_number(text)) > MAX_RETRIES:
        raise ValueError(f"is more than {MAX_RETRIES} tries")
    return count
