"""What type checkers are told of the options is what there is."""

from typing import Any, get_type_hints

import pytest

from toska_mesh.sdk.kv.open import KeyValueOverrides
from toska_mesh.sdk.kv.options import KeyValueOptions
from toska_mesh.sdk.options import ConnectOptions, ServiceOptions
from toska_mesh.sdk.overrides import ConnectOverrides, ServiceOverrides


@pytest.mark.parametrize(
    ("overrides", "kinds"),
    [
        (ConnectOverrides, [ConnectOptions]),
        (ServiceOverrides, [ConnectOptions, ServiceOptions]),
        (KeyValueOverrides, [KeyValueOptions]),
    ],
)
def test_every_option_may_be_said_by_name_with_its_own_type(overrides: type[Any], kinds: list[type[Any]]) -> None:
    assert get_type_hints(overrides) == {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
