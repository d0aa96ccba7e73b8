"""The commands that mend findings, as they are typed in a shell."""

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from pycsi.backends.limits import Limiter
from pycsi.backends.projects import ProjectLimiter
from pycsi.linux import btrfs
from pycsi.linux.kernel import Mount
from pycsi.linux.record import SCHEMA
from pycsi.model.config import PoolConfig

ELSEWHERE = "ELSEWHERE is a directory outside the pool"
"""What a message says of a placeholder."""

KERNEL_LOG = "dmesg --level=err,warn | tail -n 50"

_PODS = re.compile(r"/pods/[^/]+/volumes/")
_INSTALL = {
    "debian": "apt-get install -y",
    "fedora": "dnf install -y",
    "rhel": "dnf install -y",
    "suse": "zypper install -y",
    "alpine": "apk add",
    "arch": "pacman -S --noconfirm",
}
"""The command that installs packages, by `ID` or `ID_LIKE` of os-release(5)."""


def typed(*words: str | Path) -> str:
    """Return words as a command that a shell splits into just these."""
    return shlex.join(map(str, words))


def pycsi(config: PoolConfig, *words: str) -> str:
    """Return a command of pycsi about a pool, which is configured as it was given."""
    return pycsi_of([config], *words)


def pycsi_of(configs: Iterable[PoolConfig], *words: str) -> str:
    """Return a command of pycsi about pools, which are configured as they were given."""
    return typed("pycsi", *words, *(f"--pool={_given(config)}" for config in configs))


def _given(config: PoolConfig) -> str:
    given = (f"{key}={text}" if text else key for key, text in config.options.items())
    chosen = [option for option in given if option.partition("=")[0] in config.given]
    return ",".join((f"{config.name}={config.path}", *chosen))


def doctor(config: PoolConfig) -> str:
    """Return the command that mends what is safe to mend."""
    return pycsi(config, "doctor", "--fix", "--yes")


def ungroup(config: PoolConfig, record: Path) -> str:
    """Return the command that deletes a group snapshot with its members, with no driver running."""
    return f"{typed('rm', record)} && {doctor(config)}"


def mount_disk(path: Path) -> str:
    """Return the command that mounts a pool's disk; DISK is its device, unless fstab(5) has it."""
    if _in_fstab(path):
        return typed("mount", path)
    return f"mount DISK {shlex.quote(str(path))}"


def which_disk(path: Path) -> str:
    """Return what a message says of the placeholder in `mount_disk`; empty if there is none."""
    return "" if _in_fstab(path) else "; DISK is its device"


def _in_fstab(path: Path) -> bool:
    try:
        lines = Path("/etc/fstab").read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.split()[1:2] == [str(path)] for line in lines if line[:1] not in {"", "#"})


def write_pool_record(record: Path, pool_uuid: str | None) -> str:
    """Return the command that writes a pool's record, with a new UUID if its own is not known."""
    number = pool_uuid or '"$(cat /proc/sys/kernel/random/uuid)"'
    return f'printf \'{{"schema":{SCHEMA},"uuid":"%s"}}\' {number} > {typed(record)}'


def write_notes(record: str) -> str:
    """Return the command that writes the notes of a volume that is not in use."""
    return f'printf \'{{"schema":{SCHEMA},"staged":{{}},"published":{{}}}}\' > {typed(record)}'


def stage_anew(config: PoolConfig, volume_id: str, targets: Iterable[str]) -> tuple[str, str]:
    """Return the command that has a volume in use staged again, and what it says of placeholders.

    `targets` are the paths at which the volume was published.
    """
    those = sorted(targets)
    if any(map(_PODS.search, those)):
        return "kubectl delete pod POD -n NAMESPACE", "; POD in NAMESPACE uses it"
    if not those:
        return f'd=$(mktemp -d) && {pycsi(config, "mount", volume_id)} "$d" && ' + pycsi(
            config, "unmount", volume_id
        ), ""
    again = (pycsi(config, "mount", volume_id, target) for target in those)
    return " && ".join((pycsi(config, "unmount", volume_id), *again)), ""


def enforce(limiter: Limiter, path: Path, mounted: Mount) -> str:
    """Return the command that has sizes of directories enforced again."""
    if mounted.fstype == "btrfs":
        match btrfs.accounting(path):
            case btrfs.Accounting.SIMPLE:
                quota = ("btrfs", "quota")
                return f"{typed(*quota, 'disable', path)} && {typed(*quota, 'enable', path)}"
            case btrfs.Accounting.INCONSISTENT | btrfs.Accounting.COUNTING:
                return typed("btrfs", "quota", "rescan", "-w", path)
            case _:
                return typed("btrfs", "quota", "enable", path)
    if isinstance(limiter, ProjectLimiter) and mounted.fstype == "xfs":
        return typed("xfs_quota", "-x", "-c", "enable -p", mounted.target)
    if isinstance(limiter, ProjectLimiter):
        return typed("quotaon", "-P", mounted.target)
    again = [typed("mount", "-o", "prjquota", mounted.source, mounted.target)]
    if mounted.fstype == "ext4":
        again.insert(0, typed("tune2fs", "-O", "project,quota", "-Q", "prjquota", mounted.source))
    return " && ".join((typed("umount", mounted.target), *again))


def install(package: str) -> str:
    """Return the command that installs a package, as this distribution does it."""
    try:
        text = Path("/etc/os-release").read_text(errors="replace")
    except OSError:
        text = ""
    named = " ".join(re.findall(r'^ID(?:_LIKE)?="?([^"\n]*)', text, re.MULTILINE)).split()
    tool = next((_INSTALL[name] for name in named if name in _INSTALL), _INSTALL["debian"])
    return f"{tool} {package}"
