"""Names and ids. They are all strings on the wire and easily swapped; these types keep them apart."""

from typing import NewType

ServiceName = NewType("ServiceName", str)
InstanceId = NewType("InstanceId", str)
