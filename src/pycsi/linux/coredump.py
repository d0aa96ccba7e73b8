"""Keeping what this process knows out of core dumps."""

import resource

_NONE = 1
"""The limit, in bytes, with which the kernel neither writes a core nor pipes one to a program.

0 would not keep it from the latter (core(5)).
"""


def forbid() -> None:
    """Have the kernel make no core of this process, or of programs that it starts from now on."""
    resource.setrlimit(resource.RLIMIT_CORE, (_NONE, _NONE))
