"""The mount flags of a volume capability: how they are parsed, and which a volume can honour."""

import hashlib
import re
from collections.abc import Iterable

from pycsi.linux import mount
from pycsi.model.errors import InvalidArgument
from pycsi.model.records import VolumeType

_USERLAND = frozenset({"_netdev", "auto", "comment", "noauto", "nofail", "nouser"})
_WITHOUT_EFFECT = frozenset({"loud", "norelatime", "nostrictatime", "silent"})
"""Options that ask for the default, or for more or fewer kernel messages."""

_FORBIDS = {
    "group": ("dev", "suid"),
    "owner": ("dev", "suid"),
    "user": ("dev", "exec", "suid"),
    "users": ("dev", "exec", "suid"),
}
"""What each option forbids, unless a later option allows it again (mount(8))."""

_REACHES_OUT = frozenset({"device", "journal_dev", "journal_path", "logdev", "rtdev"})
_OPPOSITES = (
    {"sync", "async"},
    {"lazytime", "nolazytime"},
    {"mand", "nomand"},
    {"ro", "rw"},
    {"noatime", "relatime", "strictatime", "atime"},
    {"nodev", "dev"},
    {"nodiratime", "diratime"},
    {"noexec", "exec"},
    {"nosuid", "suid"},
    {"nosymfollow", "symfollow"},
)
_NOT_OURS = frozenset(
    {"bind", "loop", "move", "private", "rbind", "remount", "rprivate", "rshared", "rslave"}
    | {"runbindable", "shared", "slave", "unbindable"}
    | {f"X-mount.{name}" for name in ("group", "idmap", "mode", "owner", "subdir")}
)
_OF_A_PART = frozenset({"subvol", "subvolid"})
_PANIC = frozenset({"errors=panic", "fatal_errors=panic"})
_WITHOUT_VALUE = mount.OF_ONE_MOUNT.union({"dirsync"}, *_OPPOSITES)
"""Options that take no value, though the kernel accepts and ignores one."""

_DIGITS = 16
_OPTION = re.compile(r'(?:[^,"]|"[^"]*")+')


def split(flags: Iterable[str]) -> list[str]:
    """Return the separate options in mount flags, without those that only mount(8) itself uses.

    As in mount(8), a comma within double quotes is part of a value, and quotes around a value are
    not: `context="system_u:object_r:container_file_t:s0:c1,c2"`. A quote that is not closed is
    `InvalidArgument`.
    """
    options = _with_implied([_unquoted(option) for flag in flags for option in _options(flag)])
    return [item for item in options if not _is_ignored(item)]


def _is_ignored(option: str) -> bool:
    key = option.partition("=")[0]
    if key in _USERLAND or option in _WITHOUT_EFFECT:
        return True
    return key.startswith(("x-", "X-")) and key not in _NOT_OURS


def _with_implied(options: list[str]) -> list[str]:
    """Return the options with `user` and its like replaced by the options that they imply."""
    place = next((at for at, option in enumerate(options) if option in _FORBIDS), None)
    if place is None:
        return options
    before, after = options[:place], _with_implied(options[place + 1 :])
    implied = [f"no{name}" for name in _FORBIDS[options[place]] if name not in after]
    return [*(item for item in before if f"no{item}" not in implied), *implied, *after]


def of_filesystem(flags: Iterable[str]) -> str:
    """Return a digest of the options of the filesystem itself, in any order; "" for none."""
    options = sorted(set(split(flags)) - mount.OF_ONE_MOUNT)
    return hashlib.sha256("\0".join(options).encode()).hexdigest()[:_DIGITS] if options else ""


def _options(flag: str) -> list[str]:
    if flag.count('"') % 2:
        raise InvalidArgument("mount flags: a double quote is not closed")
    return _OPTION.findall(flag)


def _unquoted(option: str) -> str:
    key, equals, value = option.partition("=")
    if value.startswith('"') and value.endswith('"'):
        value = value[1:-1]
    return f"{key}{equals}{value}"


def check(flags: Iterable[str], type_: VolumeType, filesystem: str | None, *, thick: bool) -> None:
    """Raise `InvalidArgument` for mount flags that this type of volume cannot honour.

    `filesystem` is the kind of an image's, None for others. A flag may be sensitive, so the
    message gives its position and not its text.
    """
    known = mount.OF_ONE_MOUNT
    options = split(flags)
    for group in _OPPOSITES:
        if len(group.intersection(options)) > 1:
            raise InvalidArgument(f"mount flags: of {', '.join(sorted(group))} there can be one")
    for number, option in enumerate(options, start=1):
        where = f"mount flag {number}"
        if fault := _fault(option):
            raise InvalidArgument(f"{where} {fault}")
        if type_ is VolumeType.DIRECTORY and option not in known:
            raise InvalidArgument(
                f"{where} is for a filesystem of its own; a directory takes "
                f"{', '.join(sorted(known))}; use type: image for others"
            )
        if thick and option.partition("=")[0] == "discard":
            raise InvalidArgument(f"{where}: a thick volume is never discarded; use thin")
    if filesystem:
        _refuse_unknown(options, filesystem)


def _refuse_unknown(options: Iterable[str], filesystem: str) -> None:
    for number, option in enumerate(options, start=1):
        if not mount.knows_option(filesystem, option):
            raise InvalidArgument(
                f"mount flag {number}: {filesystem} on this node knows no such option or value"
            )


def _fault(option: str) -> str | None:
    """Return why no volume can honour an option, or None."""
    key, equals, _ = option.partition("=")
    if key in _REACHES_OUT:
        return "names another device, which a volume does not have"
    if key in _OF_A_PART:
        return "names a part of the filesystem; a volume is the whole"
    if option in _PANIC:
        return "would let an error in the volume halt the node"
    if equals and key in _WITHOUT_VALUE:
        return "has a value, which this option does not take"
    if key in _NOT_OURS:
        return "says how to mount, which is the driver's to decide"
    return None
