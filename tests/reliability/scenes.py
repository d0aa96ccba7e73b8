"""What faults are tried on: each scene is one RPC, with what has to be there before it.

A scene can be played many times on one driver, each time with objects of its own. `prepare` makes
what is needed, `act` is the RPC, `check` looks whether it has been done completely, and `undo`
takes everything away again.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from driver import MIB, Driver, block_capability, from_snapshot, from_volume, mount_capability
from reliability.faults import Worker

from pycsi.proto import csi_pb2 as csi

BYTES = 64 * 1024


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of volume: what is asked for, and how large."""

    name: str
    size: int
    parameters: dict[str, str]
    filesystem: str | None = ""
    """None: a raw block volume."""

    secrets: dict[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @property
    def capability(self) -> csi.VolumeCapability:
        if self.filesystem is None:
            return block_capability()
        return mount_capability(self.filesystem)


DIRECTORY = Kind("directory", 16 * MIB, {"type": "directory"})
EXT4 = Kind("ext4", 16 * MIB, {"type": "image"}, "ext4")
XFS = Kind("xfs", 300 * MIB, {"type": "image"}, "xfs")
BTRFS = Kind("btrfs", 256 * MIB, {"type": "image"}, "btrfs")
THICK = Kind("thick", 16 * MIB, {"type": "image", "allocation": "thick"}, "ext4")
RAW = Kind("raw", 4 * MIB, {}, None)


@dataclasses.dataclass
class Scene:
    """One RPC on objects whose names end in `tag`; `folder` is for what is mounted."""

    driver: Driver
    ground: str
    folder: Path
    tag: str
    kind: Kind
    worker = Worker.RPC
    unfinished = "never"
    """How the condition begins of a volume on which the RPC was begun, and not ended."""

    def prepare(self) -> None:
        pass

    def act(self) -> None:
        raise NotImplementedError

    def check(self) -> None:
        pass

    def undo(self) -> None:
        pass

    # What most scenes need

    def named(self, name: str) -> str:
        return f"{name}{self.tag}"

    def volume(self, name: str) -> str:
        return f"{name}{self.tag}@node-1"

    def make(
        self,
        name: str = "v",
        source: csi.VolumeContentSource | None = None,
        size: int = 0,
        **more: str,
    ) -> csi.Volume:
        parameters = self.kind.parameters | more
        if self.kind is DIRECTORY and self.ground in {"ext4", "xfs"}:  # without project quota
            parameters |= {"quota": "none"}
        return self.driver.create(
            self.named(name),
            size or self.kind.size,
            capability=self.kind.capability,
            parameters=parameters,
            source=source,
            secrets=self.kind.secrets,
        )

    def staging(self, name: str = "v") -> Path:
        return self.folder / self.named(f"staging-{name}")

    def target(self, name: str = "v") -> Path:
        return self.folder / self.named(f"target-{name}")

    def stage(self, name: str = "v") -> None:
        where, kind = self.staging(name), self.kind
        self.driver.stage(self.volume(name), where, kind.capability, secrets=kind.secrets)

    def publish(self, name: str = "v", *, readonly: bool = False) -> None:
        where = self.staging(name), self.target(name)
        capability = self.kind.capability
        self.driver.publish(self.volume(name), *where, capability, readonly=readonly)

    def unpublish(self, name: str = "v") -> None:
        self.driver.unpublish(self.volume(name), self.target(name))

    def unstage(self, name: str = "v") -> None:
        self.driver.unstage(self.volume(name), self.staging(name))

    @contextlib.contextmanager
    def mounted(self, name: str) -> Iterator[Path]:
        """Publish a volume through the `with` block; yield the file that has its content."""
        self.stage(name)
        self.publish(name)
        yield self.target(name) if self.is_raw else self.target(name) / "file"
        self.unpublish(name)
        self.unstage(name)
        self.staging(name).rmdir()

    @property
    def is_raw(self) -> bool:
        return self.kind.filesystem is None

    @property
    def content(self) -> bytes:
        return self.tag.ljust(16).encode() * (BYTES // 16)

    def write(self, file: Path) -> None:
        with file.open("r+b" if self.is_raw else "wb") as opened:
            opened.write(self.content)
            opened.flush()
            os.fsync(opened.fileno())

    def make_filled(self, name: str = "v") -> None:
        self.make(name)
        with self.mounted(name) as file:
            self.write(file)

    def check_filled(self, name: str) -> None:
        with self.mounted(name) as file, file.open("rb") as opened:
            assert opened.read(BYTES) == self.content

    def delete(self, *names: str) -> None:
        for name in names:
            self.driver.delete(self.volume(name))

    def is_listed(self, name: str) -> bool:
        return self.volume(name) in self.driver.volume_ids()


class Create(Scene):
    """CreateVolume of an empty volume."""

    def act(self) -> None:
        assert self.make().volume_id == self.volume("v")

    def check(self) -> None:
        with self.mounted("v") as file:
            self.write(file)

    def undo(self) -> None:
        self.delete("v")


class CreateOwned(Create):
    """CreateVolume whose root directory is to be another than it is made."""

    def act(self) -> None:
        made = self.make(uid="1001", gid="1002", mode="2770", lostAndFound="false")
        assert made.volume_id == self.volume("v")

    def check(self) -> None:
        with self.mounted("v") as file:
            root = file.parent.stat()
            assert (root.st_uid, root.st_gid, root.st_mode & 0o7777) == (1001, 1002, 0o2770)
            assert list(file.parent.iterdir()) == []
            self.write(file)


class CreateFirst(Create):
    """CreateVolume of the first volume of its kind: what mkfs makes is tried before."""

    def prepare(self) -> None:
        self.driver.restart()


class Clone(Scene):
    """CreateVolume from a volume, larger than that."""

    def prepare(self) -> None:
        self.make_filled()

    def act(self) -> None:
        copy = self.make("w", from_volume(self.volume("v")), self.kind.size + 16 * MIB)
        assert copy.capacity_bytes == self.kind.size + 16 * MIB

    def check(self) -> None:
        self.check_filled("w")

    def undo(self) -> None:
        self.delete("v", "w")


class Snapshot(Scene):
    """CreateSnapshot of a volume that is not in use; it is restored to see what is in it."""

    def prepare(self) -> None:
        self.make_filled()

    def act(self) -> None:
        taken = self.driver.snapshot(self.named("s"), self.volume("v"))
        assert (taken.snapshot_id, taken.ready_to_use) == (self.volume("s"), True)

    def check(self) -> None:
        assert len(self.driver.snapshots(snapshot_id=self.volume("s"))) == 1
        self.make("w", from_snapshot(self.volume("s")))
        self.check_filled("w")
        self.delete("w")

    def undo(self) -> None:
        self.driver.delete_snapshot(self.volume("s"))
        self.delete("v")


class BusySnapshot(Snapshot):
    """CreateSnapshot of a volume that is written to; afterwards it can still be."""

    def prepare(self) -> None:
        super().prepare()
        self.stage()
        self.publish()

    def check(self) -> None:
        super().check()
        if not self.is_raw:
            (self.target() / "more").write_bytes(self.content)  # it is not frozen

    def undo(self) -> None:
        self.unpublish()
        self.unstage()
        super().undo()


class Restore(Scene):
    """CreateVolume from a snapshot."""

    def prepare(self) -> None:
        self.make_filled()
        self.driver.snapshot(self.named("s"), self.volume("v"))

    def act(self) -> None:
        self.make("w", from_snapshot(self.volume("s")))

    def check(self) -> None:
        self.check_filled("w")

    def undo(self) -> None:
        self.delete("v", "w")
        self.driver.delete_snapshot(self.volume("s"))


class Group(Scene):
    """CreateVolumeGroupSnapshot of two volumes in use."""

    def prepare(self) -> None:
        for name in ("v", "w"):
            self.make_filled(name)
            self.stage(name)

    def act(self) -> None:
        self.driver.snapshot_group(self.named("g"), self.volume("v"), self.volume("w"))

    def members(self) -> list[str]:
        return [item.snapshot_id for item in self.driver.members(self.volume("g"))]

    def check(self) -> None:
        assert len(self.members()) == 2
        for number, member in enumerate(self.members()):
            self.make(f"r{number}", from_snapshot(member))
            self.check_filled(f"r{number}")

    def delete_group(self) -> None:
        self.driver.delete_group(self.volume("g"), *self.members())

    def undo(self) -> None:
        self.delete_group()
        for name in ("v", "w"):
            self.unstage(name)
        self.delete("v", "w", "r0", "r1")


class DeleteGroup(Group):
    """DeleteVolumeGroupSnapshot."""

    def prepare(self) -> None:
        super().prepare()
        super().act()
        self.there = self.members()

    def act(self) -> None:
        self.driver.delete_group(self.volume("g"), *self.there)

    def check(self) -> None:
        assert self.members() == []

    def undo(self) -> None:
        for name in ("v", "w"):
            self.unstage(name)
        self.delete("v", "w")


class Delete(Scene):
    """DeleteVolume."""

    def prepare(self) -> None:
        self.make_filled()

    def act(self) -> None:
        self.delete("v")

    def check(self) -> None:
        assert not self.is_listed("v")


class Reap(Delete):
    """What the reaper does after DeleteVolume."""

    worker = Worker.REAPER

    def act(self) -> None:
        super().act()
        process, trash = self.driver.process, self.driver.folders[0] / "trash"
        assert process is not None
        deadline = time.monotonic() + 2
        while process.poll() is None and any(trash.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.005)

    def check(self) -> None:
        super().check()
        # What could not be deleted is tried again with the next deletion.
        self.make("w")
        self.delete("w")
        self.driver.reaped()


class DeleteSnapshot(Scene):
    """DeleteSnapshot."""

    def prepare(self) -> None:
        self.make_filled()
        self.driver.snapshot(self.named("s"), self.volume("v"))

    def act(self) -> None:
        self.driver.delete_snapshot(self.volume("s"))

    def check(self) -> None:
        assert self.driver.snapshots(snapshot_id=self.volume("s")) == []

    def undo(self) -> None:
        self.delete("v")


class Expand(Scene):
    """ControllerExpandVolume of a volume that is not in use."""

    unfinished = "its limit is"

    @property
    def size(self) -> int:
        return self.kind.size + 16 * MIB

    def prepare(self) -> None:
        self.make_filled()

    def act(self) -> None:
        assert self.driver.expand(self.volume("v"), self.size).capacity_bytes == self.size

    def check(self) -> None:
        self.check_filled("v")

    def undo(self) -> None:
        self.delete("v")


class ExpandInUse(Expand):
    """NodeExpandVolume of a published volume, which does all."""

    def prepare(self) -> None:
        super().prepare()
        self.stage()
        self.publish()
        self.blocks = os.statvfs(self.target()).f_blocks

    def act(self) -> None:
        assert self.driver.node_expand(self.volume("v"), self.target(), self.size) == self.size

    def check(self) -> None:
        if self.is_raw:
            with self.target().open("rb") as device:
                assert device.seek(0, os.SEEK_END) == self.size
        else:
            # statvfs shows the pool's size for a directory that is not limited, and on btrfs.
            grown = os.statvfs(self.target()).f_blocks > self.blocks
            assert grown or self.kind is DIRECTORY

    def undo(self) -> None:
        self.unpublish()
        self.unstage()
        self.check_filled("v")
        super().undo()


class Modify(Scene):
    """ControllerModifyVolume; what it says is done when the volume is deleted."""

    def prepare(self) -> None:
        self.make(onDelete="retain")

    def act(self) -> None:
        self.driver.modify(self.volume("v"), onDelete="delete")

    def undo(self) -> None:
        self.delete("v")
        self.driver.reaped()
        assert not list((self.driver.folders[0] / "trash").iterdir())


class Attach(Scene):
    """ControllerPublishVolume."""

    def prepare(self) -> None:
        self.make()

    def act(self) -> None:
        self.driver.controller.ControllerPublishVolume(
            csi.ControllerPublishVolumeRequest(
                volume_id=self.volume("v"),
                node_id="node-1",
                volume_capability=self.kind.capability,
            )
        )

    def nodes(self) -> Sequence[str]:
        request = csi.ControllerGetVolumeRequest(volume_id=self.volume("v"))
        nodes: Sequence[str] = self.driver.controller.ControllerGetVolume(
            request
        ).status.published_node_ids
        return nodes

    def check(self) -> None:
        assert list(self.nodes()) == ["node-1"]

    def detach(self) -> None:
        request = csi.ControllerUnpublishVolumeRequest(volume_id=self.volume("v"))
        self.driver.controller.ControllerUnpublishVolume(request)

    def undo(self) -> None:
        self.detach()
        self.delete("v")


class Detach(Attach):
    """ControllerUnpublishVolume."""

    def prepare(self) -> None:
        super().prepare()
        super().act()

    def act(self) -> None:
        self.detach()

    def check(self) -> None:
        assert list(self.nodes()) == []
