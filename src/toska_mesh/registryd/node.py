"""What the registry says of itself: the one node, its datacenter, the agent's own description. Pure."""

from dataclasses import dataclass

SPOKEN_VERSION = "1.8.7"
"""The Consul release whose HTTP API we answer like; clients decide by it what they may ask."""


@dataclass(frozen=True, slots=True)
class Node:
    id: str
    name: str
    address: str
    port: int
    datacenter: str = "dc1"

    @property
    def tagged_addresses(self) -> dict[str, str]:
        family = "ipv6" if ":" in self.address else "ipv4"
        return dict.fromkeys(("lan", f"lan_{family}", "wan", f"wan_{family}"), self.address)

    @property
    def leader(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"

    def as_listed(self, index: int) -> dict[str, object]:
        """As `/v1/catalog/nodes` and `/v1/health/service` show it."""
        return {
            "ID": self.id,
            "Node": self.name,
            "Address": self.address,
            "Datacenter": self.datacenter,
            "TaggedAddresses": self.tagged_addresses,
            "Meta": {"consul-network-segment": ""},
            "CreateIndex": index,
            "ModifyIndex": index,
        }

    def as_member(self) -> dict[str, object]:
        return {
            "Name": self.name,
            "Addr": self.address,
            "Port": self.port,
            "Tags": {
                "acls": "0",
                "build": f"{SPOKEN_VERSION}:toska",
                "dc": self.datacenter,
                "id": self.id,
                "port": str(self.port),
                "role": "consul",
                "segment": "",
                "vsn": "2",
                "vsn_max": "3",
                "vsn_min": "2",
            },
            "Status": 1,
            "ProtocolMin": 1,
            "ProtocolMax": 5,
            "ProtocolCur": 2,
            "DelegateMin": 2,
            "DelegateMax": 5,
            "DelegateCur": 4,
        }
