"""Joining a fake mesh: the SDK's own way to the registry, without the sockets by which it finds out where it is."""

from dataclasses import replace

from toska_mesh.model import InstanceId, rules
from toska_mesh.sdk.consul import ConsulEnrolment
from toska_mesh.sdk.enrolment import Member

CALLER = "127.0.0.1"
"""Where somebody without an address of its own is taken to be."""


class FakeEnrolment(ConsulEnrolment):
    """`Enrolment` against the registry of a fake mesh."""

    async def register(self, member: Member, deadline: float) -> InstanceId:
        ip = rules.parse_ip(member.address.strip())
        if not member.address.strip() or (ip is not None and ip.is_unspecified):
            member = replace(member, address=CALLER)
        return await super().register(member, deadline)
