"""Settings of the daemons: read from environment variables alone, once, at the start.

A daemon declares one frozen model of `setting(...)` fields; `load` fills it and refuses what it does not understand:
an unknown variable under one of the daemon's prefixes, one that is nearly a setting under a prefix shared with others
(`CONSUL_ADRESS`), or a value of the wrong shape, is a ConfigError that names the
variable, the value and what would be right. Nothing is ever ignored silently, with one exception: Kubernetes injects
service links (`GATEWAY_PORT=tcp://…`) into pods beside a Service of the same name; these shapes are passed over.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from toska_mesh.errors import ConfigError
from toska_mesh.model.rules import mask_credentials

S = TypeVar("S", bound="DaemonSettings")

_COMMON_PREFIXES = ("TOSKA_LOG_",)
"""Name spaces of the settings that every daemon carries."""

_SHARED_PREFIXES = ("CONSUL_", "RABBITMQ_", "MESH_SERVICE_AUTH_")
"""Name spaces that others use as well: there only a near miss of one of our settings is an error."""

_NEAR_MISS = 0.9
"""Likeness (difflib's ratio) from which a name under a shared prefix is taken for a typing error."""

_OTHERS_OWN = frozenset(
    {
        *("CONSUL_HTTP_ADDR", "CONSUL_HTTP_TOKEN", "CONSUL_HTTP_TOKEN_FILE", "CONSUL_HTTP_AUTH", "CONSUL_HTTP_SSL"),
        *("CONSUL_HTTP_SSL_VERIFY", "CONSUL_CACERT", "CONSUL_CAPATH", "CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY"),
        *("CONSUL_TLS_SERVER_NAME", "CONSUL_NAMESPACE", "CONSUL_PARTITION", "CONSUL_GRPC_ADDR", "CONSUL_GRPC_CACERT"),
        *("CONSUL_GRPC_CAPATH", "CONSUL_LICENSE", "CONSUL_LICENSE_PATH", "RABBITMQ_BASE", "RABBITMQ_HOME"),
        *("RABBITMQ_LOGS", "RABBITMQ_NODENAME", "RABBITMQ_NODE_PORT", "RABBITMQ_DIST_PORT", "RABBITMQ_CONFIG_FILE"),
        *("RABBITMQ_DEFAULT_USER", "RABBITMQ_DEFAULT_PASS", "RABBITMQ_DEFAULT_VHOST", "RABBITMQ_USE_LONGNAME"),
    }
)
"""Variables of Consul and RabbitMQ themselves; not every daemon has a setting for each."""


def _split_commas(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


CommaList = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]
"""A list written with commas; spaces around the items and empty items do not count."""


def setting(
    variable: str,
    default: Any,
    description: str,
    *,
    also: tuple[str, ...] = (),
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    holds_credentials: bool = False,
) -> Any:
    """Declare one setting.

    `variable` is the environment variable; those in `also` are read when it is unset. `description` is one sentence
    with the unit, for `--help` and the configuration reference. `holds_credentials` hides `user:password@` in a URL.
    """
    return Field(
        default=default,
        alias=variable,
        description=description,
        repr=not holds_credentials,
        ge=ge,
        gt=gt,
        le=le,
        lt=lt,
        json_schema_extra={"also": list(also), "holds_credentials": holds_credentials},
    )


class DaemonSettings(BaseSettings):
    """Base of every daemon's model. `env_prefixes` are the name spaces in which an unknown variable is an error."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)
    env_prefixes: ClassVar[tuple[str, ...]] = ()

    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "TOSKA_LOG_LEVEL", "info", "Least severe level that is logged."
    )
    log_format: Literal["json", "console"] = setting(
        "TOSKA_LOG_FORMAT", "json", "`json` writes one object per line; `console` is for people."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # `load` reads the environment itself: it must see unknown names and say where each value came from.
        return (init_settings,)


@dataclass(frozen=True, slots=True)
class Variable:
    """One setting as people see it: for `--help`, `--check` and the generated reference."""

    field: str
    name: str
    also: tuple[str, ...]
    expected: str
    default: str
    description: str
    is_secret: bool
    holds_credentials: bool


@dataclass(frozen=True, slots=True)
class Loaded(Generic[S]):
    """A valid model and, by variable, where its value came from (`environment`, another variable, or `default`)."""

    settings: S
    origins: Mapping[str, str]


def load(model: type[S], environ: Mapping[str, str]) -> Loaded[S]:
    """Read and check every setting of `model`. Raises ConfigError listing all that is wrong, one per line."""
    variables = list(variables_of(model))
    values: dict[str, str] = {}
    origins: dict[str, str] = {}
    for variable in variables:
        origins[variable.name] = "default"
        for name in (variable.name, *variable.also):
            value = environ.get(name, "")
            # Compose files write `${X:-}` for "not set": empty means the default.
            if value and not _is_service_link(name, value):
                values[variable.name] = value
                origins[variable.name] = "environment" if name == variable.name else f"environment ({name})"
                break
    problems = list(_unknown_variables(model, variables, environ))
    try:
        settings = model(**values)  # type: ignore[arg-type]  # pydantic parses the texts
    except ValidationError as exc:
        problems += _explain(exc, variables, origins)
    else:
        if not problems:
            return Loaded(settings, origins)
    raise ConfigError("\n".join(problems))


def variables_of(model: type[DaemonSettings]) -> Iterator[Variable]:
    """Every setting of the model, its own before those of its bases."""
    declared = (name for owner in model.__mro__ for name in vars(owner).get("__annotations__", {}))
    for field in dict.fromkeys(name for name in declared if name in model.model_fields):
        info = model.model_fields[field]
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        yield Variable(
            field=field,
            name=info.alias or field.upper(),
            also=tuple(str(name) for name in extra.get("also", ())),  # type: ignore[union-attr]  # a list by `setting`
            expected=_expected(info),
            default=_show_default(info),
            description=info.description or "",
            is_secret=info.annotation is SecretStr,
            holds_credentials=bool(extra.get("holds_credentials")),
        )


def show(value: object, variable: Variable) -> str:
    """A value for people: secrets hidden, credentials in URLs masked."""
    if variable.is_secret:
        return "(set, hidden)" if isinstance(value, SecretStr) and value.get_secret_value() else "(empty)"
    if isinstance(value, tuple):
        text = ",".join(str(item) for item in value)
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, Enum):
        text = str(value.value)
    else:
        text = "" if value is None else str(value)
    if variable.holds_credentials:
        text = mask_credentials(text)
    return text if text else "(empty)"


_SERVICE_LINK_NAME = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")


def _is_service_link(name: str, value: str) -> bool:
    """Shapes of Kubernetes' service environment variables (kubernetes.io: "Discovering services")."""
    if _SERVICE_LINK_NAME.search(name):
        return True
    return name.endswith("_PORT") and value.startswith(("tcp://", "udp://", "sctp://"))


def _unknown_variables(
    model: type[DaemonSettings], variables: list[Variable], environ: Mapping[str, str]
) -> Iterator[str]:
    known = {name for variable in variables for name in (variable.name, *variable.also)}
    prefixes = (*_COMMON_PREFIXES, *model.env_prefixes)
    for name, value in sorted(environ.items()):
        if name in known or not name.startswith(prefixes) or _is_service_link(name, value):
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else "--help lists the ones there are"
        yield f"{name} is not a setting; {hint}"
    for name, value in sorted(environ.items()):
        shared = next((prefix for prefix in _SHARED_PREFIXES if name.startswith(prefix)), "")
        if not shared or name in known | _OTHERS_OWN or name.startswith(prefixes) or _is_service_link(name, value):
            continue
        candidates = [other for other in known if other.startswith(shared)]
        if near := difflib.get_close_matches(name, candidates, n=1, cutoff=_NEAR_MISS):
            yield f"{name} is not a setting; did you mean {near[0]}?"


def _explain(exc: ValidationError, variables: list[Variable], origins: Mapping[str, str]) -> Iterator[str]:
    by_name = {name: variable for variable in variables for name in (variable.name, variable.field)}
    for error in exc.errors():
        variable = by_name.get(str(error["loc"][0]) if error["loc"] else "")
        reason = error["msg"].removeprefix("Value error, ")
        if variable is None:
            yield reason  # a rule across several settings: its text names them
            continue
        value = str(error["input"])
        is_hidden = variable.is_secret or (variable.holds_credentials and "://" not in value)
        shown = "(hidden)" if is_hidden else repr(mask_credentials(value))
        written = next((name for name in variable.also if origins[variable.name].endswith(f"({name})")), variable.name)
        if error["type"] == "value_error":
            yield f"{written}={shown}: {reason}"
        else:
            yield f"{written}={shown} is wrong: it should be {variable.expected}"


def _expected(info: FieldInfo) -> str:
    return _expected_of(info.annotation, info.metadata)


def _expected_of(annotation: object, limits: list[object]) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *inner = get_args(annotation)
        return _expected_of(base, [*inner, *limits])
    if origin in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
        return " or ".join(_expected_of(kind, limits) for kind in kinds)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(annotation))
    if origin is tuple:
        return "a comma-separated list"
    if isinstance(annotation, type):
        if issubclass(annotation, Enum):
            return " or ".join(f"`{member.value}`" for member in annotation)
        if issubclass(annotation, bool):
            return "`true` or `false`"
        if issubclass(annotation, int | float):
            word = "a whole number" if issubclass(annotation, int) else "a number"
            return word + "".join(_bound(limit) for limit in limits)
        if issubclass(annotation, PurePath):
            return "a path"
    return "text"


def _bound(limit: object) -> str:
    match limit:
        case Ge(ge):
            return f", at least {_plain(ge)}"
        case Gt(gt):
            return f", above {_plain(gt)}"
        case Le(le):
            return f", at most {_plain(le)}"
        case Lt(lt):
            return f", below {_plain(lt)}"
        case MinLen(length):
            return f", at least {length} characters"
        case _:
            return ""


def _plain(number: object) -> str:
    """`1048576`, not `1.04858e+06`; `5`, not `5.0`."""
    return str(int(number)) if isinstance(number, float) and number.is_integer() else str(number)


def _show_default(info: FieldInfo) -> str:
    default = info.get_default(call_default_factory=True)
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    if isinstance(default, bool):
        return "true" if default else "false"
    if isinstance(default, tuple):
        return ",".join(str(item) for item in default)
    if isinstance(default, Enum):
        return str(default.value)
    return "" if default is None else str(default)
