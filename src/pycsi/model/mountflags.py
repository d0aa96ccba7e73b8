"""The mount flags of a volume capability: how they are parsed, and which a volume can honour."""

import hashlib
import re
from collections.abc import Iterable

from pycsi.linux import mount
from pycsi.model.errors import InvalidArgument
from pycsi.model.records import VolumeType
from pycsi.model.request import Access, Capability

_USERLAND = frozenset({"_netdev", "auto", "noauto", "nofail", "user", "nouser"})
_NOT_FOR_USERS = ("dev", "exec", "suid")
"""What the option `user` forbids, unless a later option allows it again (mount(8))."""

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
)
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
    options = _for_users([_unquoted(option) for flag in flags for option in _options(flag)])
    return [item for item in options if item not in _USERLAND and not item.startswith("x-")]


def _for_users(options: list[str]) -> list[str]:
    """Return the options with `user` replaced by the options that it stands for."""
    if "user" not in options:
        return options
    place = options.index("user")
    before, after = options[:place], options[place + 1 :]
    implied = [f"no{name}" for name in _NOT_FOR_USERS if name not in after]
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


def check(capability: Capability, type_: VolumeType, *, thick: bool) -> None:
    """Raise `InvalidArgument` for mount flags that this type of volume cannot honour.

    A flag may be sensitive, so the message gives its position and not its text.
    """
    if capability.access is Access.BLOCK or not capability.mount_flags:
        return
    known = mount.OF_ONE_MOUNT
    options = split(capability.mount_flags)
    for group in _OPPOSITES:
        if len(group.intersection(options)) > 1:
            raise InvalidArgument(f"mount flags: of {', '.join(sorted(group))} there can be one")
    for number, option in enumerate(options, start=1):
        where = f"mount flag {number}"
        key, equals, _ = option.partition("=")
        if key in _REACHES_OUT:
            raise InvalidArgument(f"{where} names another device, which a volume does not have")
        if equals and key in _WITHOUT_VALUE:
            raise InvalidArgument(f"{where} has a value, which this option does not take")
        if option in _NOT_OURS:
            raise InvalidArgument(f"{where} says how to mount, which is the driver's to decide")
        if type_ is VolumeType.DIRECTORY and option not in known:
            raise InvalidArgument(
                f"{where} is for a filesystem of its own; a directory takes "
                f"{', '.join(sorted(known))}; use type: image for others"
            )
        if thick and key == "discard":
            raise InvalidArgument(f"{where}: a thick volume is never discarded; use thin")
