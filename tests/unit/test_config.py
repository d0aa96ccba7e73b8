"""What the operator may configure, and that every mistake is one clear line."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

from pycsi.model import ids
from pycsi.model.addresses import Address, parse_endpoint
from pycsi.model.config import Config, DriverMode, PoolConfig, parse_nodes
from pycsi.model.errors import ConfigError
from pycsi.model.size import Reserve, parse_size

KI, MI, GI, TI, PI = (1024**power for power in range(1, 6))


def config(**changes: Any) -> Config:
    given: dict[str, Any] = {
        "socket": Path("/run/csi.sock"),
        "node_id": "node-1",
        "pools": (PoolConfig.parse("default=/pool"),),
    }
    return Config(**given | changes)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("12B", 12),
        ("10K", 10_000),
        ("10Ki", 10 * KI),
        ("500M", 500_000_000),
        ("1.5GiB", 3 * GI // 2),
        ("0.5Gi", GI // 2),
        (" 3Mi ", 3 * MI),
        ("7 GB", 7 * 10**9),
        ("1Ti", TI),
        ("2Pi", 2 * PI),
        ("9007199254740993", 2**53 + 1),
        (str(2**63 - 1), 2**63 - 1),
    ],
)
def test_size(text: str, size: int) -> None:
    """A size is exact to the byte, whatever its unit and however large."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Gi",
        "-1",
        "1,5Gi",
        "10 Xi",
        "1e3",
        "ten",
        "0x10",
        "1Gi2",
        "10Gib",
        "nan",
        "inf",
        "+1",
        ".",
    ],
)
def test_no_size(text: str) -> None:
    """What is no size is a ValueError."""
    with pytest.raises(ValueError, match="no size"):
        parse_size(text)


def test_enormous_size() -> None:
    """A number beyond every float is a number or a ValueError, never another exception."""
    digits = "9" * 400
    with contextlib.suppress(ValueError):
        assert parse_size(digits) == int(digits)


@pytest.mark.parametrize(
    ("text", "total", "reserved"),
    [
        ("5%", 1000, 50),
        ("0%", 1000, 0),
        ("0.5%", 1000, 5),
        ("99.9%", 1000, 999),
        ("10Gi", 1, 10 * GI),
        ("0", 1000, 0),
    ],
)
def test_reserve(text: str, total: int, reserved: int) -> None:
    """A reserve is bytes, or a share of the filesystem."""
    assert Reserve.parse(text).of(total) == reserved


def test_pool_with_every_option() -> None:
    """All options of a pool are read, in any order."""
    pool = PoolConfig.parse("fast=/mnt/nvme,require-mount,overcommit=1.5,allow-volatile,reserve=5%")
    assert pool == PoolConfig(
        name="fast",
        path=Path("/mnt/nvme"),
        reserve=Reserve(share=0.05),
        overcommit=1.5,
        require_mount=True,
        allow_volatile=True,
    )


def test_pool_without_options() -> None:
    """A bare pool reserves nothing, promises no byte twice, and accepts no volatile filesystem."""
    pool = PoolConfig.parse("default=/var/lib/pycsi")
    assert pool == PoolConfig(name="default", path=Path("/var/lib/pycsi"))
    assert (pool.reserve.of(10**12), pool.overcommit) == (0, 1.0)
    assert not pool.require_mount
    assert not pool.allow_volatile


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("/pool", "NAME=PATH"),
        ("=/pool", "NAME=PATH"),
        ("-x=/pool", "NAME=PATH"),
        ("a b=/pool", "NAME=PATH"),
        ("x" * 64 + "=/pool", "NAME=PATH"),
        ("name\n=/pool", "NAME=PATH"),
        ("default=", "absolute"),
        ("default=pool", "absolute"),
        ("default=~/pool", "absolute"),
        ("default=/pool,reserve=", "no size"),
        ("default=/pool,reserve", "no size"),
        ("default=/pool,reserve=100%", "between"),
        ("default=/pool,reserve=-1%", "between"),
        ("default=/pool,reserve=nan%", "between"),
        ("default=/pool,reserve=x%", "'x%' is not between"),
        ("default=/pool,reserve=1_0%", "'1_0%' is not between"),
        ("default=/pool,reserve=-5Gi", "no size"),
        ("default=/pool,overcommit=0", "ratio"),
        ("default=/pool,overcommit=-1", "ratio"),
        ("default=/pool,overcommit=inf", "ratio"),
        ("default=/pool,overcommit=nan", "ratio"),
        ("default=/pool,overcommit=", "'' is not a positive ratio"),
        ("default=/pool,overcommit=two", "'two' is not a positive ratio"),
        ("default=/pool,uuid=foo", "'foo' is no UUID"),
        ("default=/pool,uuid=", "'' is no UUID"),
        ("default=/pool,freeze-limit=soon", "freeze-limit: 'soon' is no duration"),
        ("default=/pool,freeze-limit=0", "freeze-limit is 0"),
        ("default=/pool,freeze-limit=999999999d", "freeze-limit: '999999999d' is over 100 years"),
        (
            "default=/pool,retain-for=999999999d",
            "over 100 years; give a shorter time; or write ever",
        ),
        ("default=/pool,reserve=99999P", "bytes; give a smaller size; or write a percentage"),
        ("default=/pool,retain-for=forever", "retain-for: 'forever' is no duration.*ever"),
        ("default=/pool,retain-for", "retain-for: '' is no duration"),
        ("default=/pool,require-mount=yes", "require-mount takes no value"),
        ("default=/pool,require-mount=", "require-mount takes no value"),
        ("default=/pool,require-pool=no", "require-pool takes no value"),
        ("default=/pool,allow-volatile=1", "allow-volatile takes no value"),
        ("default=/pool,size=10Gi", "unknown option"),
        ("default=/pool,", "comma"),
        ("default=/pool,,require-mount", "comma"),
        ("default=/\udcff", "not UTF-8"),
        ("default=/pool,reserve=1,reserve=2", "more than once"),
        ("default=/pool,require-mount,require-mount", "more than once"),
    ],
)
def test_pool_that_cannot_be(text: str, word: str) -> None:
    """A wrong pool is one line that names the mistake."""
    with pytest.raises(ConfigError, match=word) as caught:
        PoolConfig.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pools", "word"),
    [
        (["a=/x", "a=/y"], "more than once"),
        (["a=/x", "b=/x"], "one directory"),
        (["a=/x", "b=/x/"], "one directory"),
        (["a=/x", "b=/x/y/z"], "another pool"),
        (["b=/x/y", "a=/x"], "another pool"),
        (["a=/x", "b=/x/y/.."], "one directory"),
        ([], "no pool"),
    ],
)
def test_pools_that_cannot_be_together(pools: list[str], word: str) -> None:
    """Two pools have two names and two trees."""
    with pytest.raises(ConfigError, match=word):
        config(pools=tuple(map(PoolConfig.parse, pools)))


def test_pools_that_differ_only_in_a_prefix_of_their_paths() -> None:
    """A path that begins like another one does not lie in it."""
    assert len(config(pools=(PoolConfig.parse("a=/x"), PoolConfig.parse("b=/xy"))).pools) == 2


def test_pool_nested_through_a_link(tmp_path: Path) -> None:
    """A symbolic link does not hide that one pool lies in another."""
    (tmp_path / "pool").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pool")
    pools = [f"a={tmp_path}/pool", f"b={tmp_path}/link/inner"]
    with pytest.raises(ConfigError, match="another pool"):
        config(pools=tuple(map(PoolConfig.parse, pools)))


@pytest.mark.parametrize("node", ["", "a\nb", "a\tb", "\0", "x" * 257, "é" * 129])
def test_node_id_that_cannot_be(node: str) -> None:
    """A node id has 1 to 256 bytes, and no control characters."""
    with pytest.raises(ConfigError, match="--node-id"):
        config(node_id=node)


@pytest.mark.parametrize("node", ["n", "ip-10-0-0-1.eu.compute.internal", "x" * 256, "é" * 128])
def test_node_id(node: str) -> None:
    """A node id of any length up to 256 bytes leads to a legal topology value."""
    assert len(ids.segment(config(node_id=node).node_id)) <= 63


@pytest.mark.parametrize("name", ["", "-x", "x-", "a/b", "a b", "x" * 64, "ä"])
def test_driver_name_that_cannot_be(name: str) -> None:
    """A driver name is what GetPluginInfo may answer."""
    with pytest.raises(ConfigError, match="--driver-name"):
        config(driver_name=name)


@pytest.mark.parametrize("number", [-1, 2**63])
def test_limit_of_volumes_that_cannot_be(number: int) -> None:
    """The number of volumes of a node fits the protocol's field."""
    with pytest.raises(ConfigError, match="--max-volumes-per-node"):
        config(max_volumes=number)


def test_number_of_volumes_with_metrics() -> None:
    """It can be none, but not fewer."""
    assert config(metrics_volumes=0).metrics_volumes == 0
    with pytest.raises(ConfigError, match="--metrics-volumes"):
        config(metrics_volumes=-1)


def test_controller_mode_needs_no_node() -> None:
    """The controller's process has neither a node nor pools, but finds nodes, with TLS."""
    service = Address("pycsi-nodes.pycsi.svc", 9810)
    controller = {"mode": DriverMode.CONTROLLER, "node_id": "", "pools": ()}
    assert not config(**controller, node_service=service, tls=Path("/tls")).pools
    with pytest.raises(ConfigError, match="--tls-directory"):
        config(**controller, node_service=service)
    with pytest.raises(ConfigError, match="--node-service"):
        config(**controller, tls=Path("/tls"))
    with pytest.raises(ConfigError, match="not both"):
        config(**controller, tls=Path("/tls"), node_service=service, nodes={"a": service})
    with pytest.raises(ConfigError, match="host is missing"):
        config(**controller, tls=Path("/tls"), node_service=Address("", 9810))


def test_listening_needs_node_mode_and_certificates() -> None:
    """A node listens for its controller with TLS only, and no other mode does."""
    listen = Address("", 9810)
    assert config(mode=DriverMode.NODE, listen=listen, tls=Path("/tls")).listen == listen
    with pytest.raises(ConfigError, match="--tls-directory"):
        config(mode=DriverMode.NODE, listen=listen)
    with pytest.raises(ConfigError, match="mode node"):
        config(mode=DriverMode.SINGLE_NODE, listen=listen, tls=Path("/tls"))
    with pytest.raises(ConfigError, match="mode controller"):
        config(mode=DriverMode.NODE, nodes={"a": listen})


def test_nodes() -> None:
    """Each --node names a node by its id, and its address; they are known by topology segment."""
    found = parse_nodes(["a=10.0.0.1:9810", "odd name=[::1]:1"])
    assert found == {"a": ("10.0.0.1", 9810), ids.segment("odd name"): ("::1", 1)}


@pytest.mark.parametrize("text", ["", "a", "=h:1", "a=", "a=:9810", "a=h", "a=h:0", "\0=h:1"])
def test_node_that_cannot_be(text: str) -> None:
    """A node has a name, a host and a port."""
    with pytest.raises(ConfigError, match="--node"):
        parse_nodes([text])


def test_node_given_twice() -> None:
    """A node has one address."""
    with pytest.raises(ConfigError, match="more than once"):
        parse_nodes(["a=h:1", "a=h:2"])


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("unix:///csi/csi.sock", "/csi/csi.sock"),
        ("unix:/csi/csi.sock", "/csi/csi.sock"),
        ("/csi/csi.sock", "/csi/csi.sock"),
        ("unix:///" + "x" * 106, "/" + "x" * 106),
    ],
)
def test_endpoint(text: str, path: str) -> None:
    """An endpoint may be written in the three ways that CSI tools write it."""
    assert parse_endpoint(text) == Path(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "csi.sock",
        "unix:csi.sock",
        "unix:",
        "tcp://0.0.0.0:1",
        "dns:///x:1",
        "unix:///" + "x" * 107,
    ],
)
def test_endpoint_that_cannot_be(text: str) -> None:
    """Only absolute paths of sockets, of a length that the kernel takes, are endpoints."""
    with pytest.raises(ConfigError, match="--endpoint"):
        parse_endpoint(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9180", ("127.0.0.1", 9180)),
        (":9180", ("", 9180)),
        ("[::]:9180", ("::", 9180)),
        ("[::1]:80", ("::1", 80)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_address(text: str, address: tuple[str, int]) -> None:
    """An address is a host and a port, and is shown as it is written."""
    found = Address.parse(text, "--metrics-address", ":9180")
    assert (found, str(found)) == (address, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9180",
        "host:",
        "host:0",
        "host:65536",
        "host:http",
        "h:-1",
        "::1:80",
        "[::1:80",
        "[]:80",
        "h:+1",
        "h:٨",
    ],
)
def test_address_that_cannot_be(text: str) -> None:
    """A port is a number from 1 to 65535, and is given."""
    with pytest.raises(ConfigError, match="--metrics-address"):
        Address.parse(text, "--metrics-address", ":9180")
