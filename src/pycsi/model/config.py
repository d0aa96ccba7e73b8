"""The operator's configuration, checked once at start."""

import dataclasses
import enum
import itertools
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pycsi.model import ids
from pycsi.model.addresses import Address
from pycsi.model.errors import ConfigError
from pycsi.model.size import Reserve, parse_number

DRIVER_NAME = "pycsi.storage"
DEFAULT_POOL = "default"

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhd]?)", re.ASCII)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 60 * 60, "d": 24 * 60 * 60}
_LONGEST_DURATION = 100 * 365 * _SECONDS["d"]
_LONGEST_NODE_ID = 256
_NO_TLS = (
    "controller and nodes speak with mutual TLS only; give --tls-directory, the directory of "
    "tls.crt, tls.key and ca.crt"
)


class DriverMode(enum.StrEnum):
    """Which CSI capabilities the process advertises; see `services/capabilities.py`."""

    SINGLE_NODE = "single-node"
    NODE = "node"
    CONTROLLER = "controller"


class CsiVersion(enum.StrEnum):
    """The version of the CSI specification whose capabilities the process advertises."""

    V1_12 = "1.12"
    V1_13 = "1.13"


def parse_duration(text: str) -> float:
    """Return the seconds of `10s`, `5m`, `12h`, `7d` or a plain number.

    Other text raises `ValueError`, and so does more than 100 years, so that the time fits Python's
    dates and timers.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no duration; write a number with s, m, h or d")
    number, unit = match.groups()
    seconds = float(number) * _SECONDS[unit]
    if seconds > _LONGEST_DURATION:
        raise ValueError(f"{text!r} is over 100 years; give a shorter time")
    return seconds


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """The configuration of one pool.

    `overcommit` is the ratio of promised bytes to real ones; 1.0 promises no byte twice.
    `uuid`: serve only the pool with this UUID, and no empty directory.
    `require_mount`: serve the pool only if its own filesystem is mounted at exactly this path.
    `require_pool`: refuse to start while the pool is missing.
    `allow_volatile`: accept a filesystem in memory, which loses its volumes at a reboot.
    `freeze_limit`: the longest freeze window of a snapshot, in seconds.
    `retain_for`: the seconds that a volume with `onDelete: retain` stays in the trash; None: for
    ever.
    `given`: the options that the operator has set.
    """

    name: str
    path: Path
    reserve: Reserve = dataclasses.field(default_factory=Reserve)
    overcommit: float = 1.0
    uuid: str | None = None
    require_mount: bool = False
    require_pool: bool = False
    allow_volatile: bool = False
    freeze_limit: float = 10.0
    retain_for: float | None = 7.0 * _SECONDS["d"]
    given: frozenset[str] = dataclasses.field(default=frozenset(), compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> "PoolConfig":
        """Parse `NAME=PATH[,reserve=SIZE|PERCENT%][,overcommit=RATIO][,uuid=UUID][,...]`.

        Any fault raises `ConfigError`, which names the pool and the option.
        """
        name, equals, rest = text.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise ConfigError(f"pool {text!r}: write NAME=PATH, with a name of letters and digits")
        path, *options = rest.split(",")
        if not path.startswith("/"):
            raise ConfigError(f"pool {name}: {path!r} is not an absolute path; begin it with /")
        if path.encode(errors="ignore") != os.fsencode(path):
            raise ConfigError(f"pool {name}: {path!r} is not UTF-8; rename the directory")
        settings = [option.partition("=") for option in options]
        names = [setting for setting, _, _ in settings]
        for setting in names:
            if setting and names.count(setting) > 1:
                raise ConfigError(f"pool {name}: {setting} is given more than once; leave one out")
        try:
            return dataclasses.replace(
                cls(name=name, path=Path(path), given=frozenset(names)),
                **dict(map(_pool_option, settings)),
            )
        except ValueError as error:
            raise ConfigError(f"pool {name}: {error}") from None

    @property
    def options(self) -> dict[str, str]:
        """All options as texts that `parse` takes; a flag is "", if it is set."""
        values = {
            "reserve": str(self.reserve),
            "overcommit": repr(self.overcommit),
            "freeze-limit": _seconds(self.freeze_limit),
            "retain-for": "ever" if self.retain_for is None else _seconds(self.retain_for),
        }
        flags = {flag: "" for flag in _POOL_FLAGS if getattr(self, flag.replace("-", "_"))}
        return {**values, **flags, **({"uuid": self.uuid} if self.uuid else {})}

    @property
    def text(self) -> str:
        """The text from which `parse` makes this configuration."""
        return self._text(self.options)

    def _text(self, options: Mapping[str, str]) -> str:
        words = (f"{key}={value}" if value else key for key, value in options.items())
        return ",".join((f"{self.name}={self.path}", *words))

    def filled(self, options: Mapping[str, str]) -> "PoolConfig":
        """Return this configuration with other `options` where the operator has set none.

        `ConfigError` if one of them is invalid.
        """
        own = {key: value for key, value in self.options.items() if key in self.given}
        return PoolConfig.parse(self._text({**options, **own}))


def _seconds(time: float) -> str:
    return f"{time:.9f}".rstrip("0").rstrip(".") + "s"


def _pool_option(setting: tuple[str, str, str]) -> tuple[str, Any]:
    key, equals, text = setting
    if not key:
        raise ValueError("an option is empty; take away the comma that is too much")
    if key not in _POOL_OPTIONS:
        raise ValueError(f"unknown option {key!r}; there are {', '.join(_POOL_OPTIONS)}")
    if equals and key in _POOL_FLAGS:
        raise ValueError(
            f"{key} takes no value, but has {text!r}; write {key} alone, or leave it out"
        )
    return key.replace("-", "_"), _POOL_OPTIONS[key](text)


def _ratio(text: str) -> float:
    ratio = parse_number(text)
    if not ratio:
        raise ValueError(f"overcommit: {text!r} is not a positive ratio such as 1.5")
    return ratio


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise ValueError(
            f"uuid: {text!r} is no UUID; `pycsi get pools -o json` shows that of a pool"
        ) from None


def _freeze_limit(text: str) -> float:
    try:
        limit = parse_duration(text)
    except ValueError as error:
        raise ValueError(f"freeze-limit: {error}") from None
    if not limit:
        raise ValueError("freeze-limit is 0; give the time that applications can wait")
    return limit


def _retain_for(text: str) -> float | None:
    try:
        return None if text == "ever" else parse_duration(text)
    except ValueError as error:
        raise ValueError(f"retain-for: {error}; or write ever") from None


_POOL_FLAGS = ("require-mount", "require-pool", "allow-volatile")
_POOL_OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "reserve": Reserve.parse,
    "overcommit": _ratio,
    "uuid": _uuid,
    "freeze-limit": _freeze_limit,
    "retain-for": _retain_for,
    **dict.fromkeys(_POOL_FLAGS, lambda _: True),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The options of `pycsi serve`; an invalid one raises `ConfigError`.

    `max_volumes` is the number of volumes that the node takes; 0: any number. `metrics_volumes` is
    the number of volumes that have metrics of their own. `cgroup_root` is the cgroup in which the
    kubelet has made those of the pods; None: no I/O is limited.
    `tracing`: send the traces of RPCs to an OTLP receiver.
    `listen` is where the controller reaches a node, `tls` the directory of the certificates.
    The controller finds the nodes at the addresses of `node_service`, or at those in `nodes`, by
    topology segment.
    """

    socket: Path
    node_id: str
    pools: tuple[PoolConfig, ...]
    driver_name: str = DRIVER_NAME
    mode: DriverMode = DriverMode.SINGLE_NODE
    csi_version: CsiVersion = CsiVersion.V1_13
    attach: bool = False
    max_volumes: int = 0
    metrics: Address | None = None
    metrics_volumes: int = 500
    cgroup_root: Path | None = None
    tracing: bool = False
    one_cpu: bool = True
    listen: Address | None = None
    tls: Path | None = None
    node_service: Address | None = None
    nodes: Mapping[str, Address] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if mistakes := [*dict.fromkeys(self._mistakes())]:
            raise ConfigError(*mistakes)

    def _mistakes(self) -> Iterator[str]:
        """Yield what is wrong: all of it, since each start tells no more."""
        yield from _driver_name_mistakes(self.driver_name)
        if self.mode is DriverMode.CONTROLLER:
            yield from self._controller_mistakes()
        else:
            yield from self._node_mistakes()
        if not 0 <= self.max_volumes < 2**63:
            yield (
                f"--max-volumes-per-node {self.max_volumes} is negative or too large; give 0 for "
                "any number, or a limit"
            )
        if self.metrics_volumes < 0:
            yield f"--metrics-volumes {self.metrics_volumes} is negative; give 0 for none, or more"
        try:
            refuse_entangled(self.pools)
        except ConfigError as error:
            yield str(error)

    def _controller_mistakes(self) -> Iterator[str]:
        if self.pools:
            yield "--pool is for the nodes: a driver in mode controller has no pool; leave it out"
        if self.listen:
            yield "--listen-address is for mode node: the controller calls the nodes; leave it out"
        if self.cgroup_root:
            yield "--cgroup-root is for the nodes: a controller has no volumes; leave it out"
        if bool(self.nodes) is bool(self.node_service):
            yield (
                "mode controller forwards to the nodes: give --node-service HOST:PORT, a name with "
                "the addresses of all nodes, or --node NAME=HOST:PORT for each node, and not both"
            )
        if self.node_service and not self.node_service.host:
            yield (
                f"--node-service {self.node_service}: the host is missing; give HOST:PORT, with a "
                "name that has the addresses of all nodes"
            )
        if self.tls is None:
            yield f"mode controller: {_NO_TLS}"

    def _node_mistakes(self) -> Iterator[str]:
        yield from _node_id_mistakes(self.node_id)
        if not self.pools:
            yield "no pool: give --pool NAME=PATH at least once"
        if self.node_service or self.nodes:
            yield "--node-service and --node are for mode controller; leave them out"
        if self.listen and self.mode is not DriverMode.NODE:
            yield (
                "--listen-address is for mode node: in others no controller calls; leave it out, "
                "or give --mode node"
            )
        if self.cgroup_root and not self.cgroup_root.is_absolute():
            yield f"--cgroup-root {self.cgroup_root}: give an absolute path, such as /sys/fs/cgroup"
        if self.listen and self.tls is None:
            yield f"--listen-address: {_NO_TLS}"


def parse_nodes(texts: Iterable[str]) -> dict[str, Address]:
    """Return the addresses in the values `NAME=HOST:PORT` of --node, by topology segment."""
    found: dict[str, Address] = {}
    for text in texts:
        name, equals, address = text.rpartition("=")
        if not equals:
            raise ConfigError(f"--node {text!r}: give NAME=HOST:PORT, with the node's --node-id")
        if mistakes := [*_node_id_mistakes(name)]:
            raise ConfigError(*mistakes)
        segment = ids.segment(name)
        if segment in found:
            raise ConfigError(f"--node {name} is given more than once; leave one out")
        found[segment] = Address.parse(address, f"--node {name}", f"{name}=10.0.0.7:9810")
        if not found[segment].host:
            raise ConfigError(f"--node {text!r}: the host is missing; give NAME=HOST:PORT")
    for one, other in itertools.combinations(found, 2):
        if found[one] == found[other]:
            raise ConfigError(
                f"--node {other}: {found[other]} is that of node {one}; give each node its own"
            )
    return found


def refuse_entangled(pools: Iterable[PoolConfig]) -> None:
    """Raise `ConfigError` if two pools share a name or directory, or one lies inside another."""
    for pool, other in itertools.combinations(pools, 2):
        if pool.name == other.name:
            raise ConfigError(f"pool {pool.name} is given more than once; give each its own name")
        _refuse_nested(pool, other)


def _refuse_nested(pool: PoolConfig, other: PoolConfig) -> None:
    places = [Path(os.path.realpath(item.path)) for item in (pool, other)]
    if places[0] == places[1]:
        raise ConfigError(
            f"pools {pool.name} and {other.name} are one directory, {places[0]}; give each its own"
        )
    for inner, outer, named in ((0, 1, pool), (1, 0, other)):
        if places[inner].is_relative_to(places[outer]):
            raise ConfigError(
                f"pool {named.name}: {places[inner]} lies in another pool, {places[outer]}; use "
                "another directory"
            )


def _driver_name_mistakes(name: str) -> Iterator[str]:
    if not _NAME.fullmatch(name) or len(name) > 63:  # noqa: PLR2004  (GetPluginInfoResponse.name)
        yield (
            f"--driver-name {name!r}: give at most 63 letters, digits, '.', '-' and '_', "
            "beginning and ending with a letter or digit"
        )


def _node_id_mistakes(node_id: str) -> Iterator[str]:
    size = len(node_id.encode(errors="surrogateescape"))
    if not node_id or size > _LONGEST_NODE_ID or not node_id.isprintable():
        yield (
            f"--node-id is {'missing' if not node_id else repr(node_id)}: give this node's name, "
            f"1 to {_LONGEST_NODE_ID} bytes without control characters"
        )
