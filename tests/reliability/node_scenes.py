"""Scenes of the Node service."""

from conftest import run
from driver import MIB, mount_capability
from reliability.scenes import DIRECTORY, Scene

from pycsi.linux import kernel


class Stage(Scene):
    """NodeStageVolume."""

    def prepare(self) -> None:
        self.make_filled()

    def act(self) -> None:
        self.stage()

    def check(self) -> None:
        self.publish()
        file = self.target() if self.is_raw else self.target() / "file"
        with file.open("rb") as opened:
            assert opened.read(len(self.content)) == self.content
        self.unpublish()

    def undo(self) -> None:
        self.unstage()
        assert kernel.topmost(self.staging()) is None
        self.delete("v")


class StageChecked(Stage):
    """NodeStageVolume of an ext4 that has met errors, and is checked before it is mounted."""

    def prepare(self) -> None:
        self.make(fsck="true")
        with self.mounted("v") as file:
            self.write(file)
        image = self.driver.folders[0] / "volumes" / self.volume("v") / "disk.img"
        run("debugfs", "-w", "-R", "ssv state 2", image)


class Unstage(Stage):
    """NodeUnstageVolume."""

    def prepare(self) -> None:
        super().prepare()
        self.stage()

    def act(self) -> None:
        self.unstage()

    def check(self) -> None:
        assert kernel.topmost(self.staging()) is None

    def undo(self) -> None:
        self.delete("v")


class Publish(Stage):
    """NodePublishVolume."""

    def prepare(self) -> None:
        super().prepare()
        self.stage()

    def act(self) -> None:
        self.publish()

    def check(self) -> None:
        file = self.target() if self.is_raw else self.target() / "file"
        with file.open("rb") as opened:
            assert opened.read(len(self.content)) == self.content

    def undo(self) -> None:
        self.unpublish()
        assert not self.target().exists()
        super().undo()


class PublishReadOnly(Publish):
    """NodePublishVolume with `readonly`, which takes a device of its own for a raw volume."""

    def act(self) -> None:
        self.publish(readonly=True)


class Unpublish(Publish):
    """NodeUnpublishVolume."""

    def prepare(self) -> None:
        super().prepare()
        self.publish()

    def act(self) -> None:
        self.unpublish()

    def check(self) -> None:
        assert not self.target().exists()

    def undo(self) -> None:
        self.unstage()
        self.delete("v")


class PublishInline(Scene):
    """NodePublishVolume of an inline volume, which creates it."""

    def context(self) -> dict[str, str]:
        kind = "directory" if self.kind is DIRECTORY else "image"
        return {
            "csi.storage.k8s.io/ephemeral": "true",
            "size": str(16 * MIB),
            "type": "image" if self.ground != "btrfs" else kind,
        }

    def act(self) -> None:
        target = self.target()
        self.driver.publish(
            self.named("csi-"), None, target, mount_capability(), context=self.context()
        )

    def check(self) -> None:
        (self.target() / "file").write_bytes(self.content)
        run("sync", "-f", self.target())

    def unpublish_inline(self) -> None:
        self.driver.unpublish(self.named("csi-"), self.target())

    def undo(self) -> None:
        self.unpublish_inline()
        assert not self.target().exists()


class UnpublishInline(PublishInline):
    """NodeUnpublishVolume of an inline volume, which deletes it."""

    def prepare(self) -> None:
        super().act()

    def act(self) -> None:
        self.unpublish_inline()

    def check(self) -> None:
        assert not self.target().exists()

    def undo(self) -> None:
        pass
