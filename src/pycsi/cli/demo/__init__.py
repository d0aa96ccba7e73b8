"""`pycsi demo`: the life of real volumes, with each claim proved at the published path.

    run            a private mount namespace, so that no mount can be left behind
     └ show        a scratch directory with pools, a driver on them, the stages, the summary
        └ lives, services    the RPCs in the life of a volume, and those for its data
           └ claims, copies    each proves one claim with the files and devices themselves

The demo uses the driver as an orchestrator does: as a separate process, by gRPC on a unix socket.
"""

import os
import signal
from pathlib import Path

from pycsi.cli.errors import CommandError
from pycsi.linux import namespace

_KILLED = 128
"""Added to a signal's number: the exit status of a process that it killed, as shells report it."""


def run(directory: Path | None) -> int:
    """Show everything that this machine allows; return the exit status, 0 if all was proved.

    `directory` is where the pools are made; None: in a temporary directory.
    """
    # Debian has mkfs in /usr/sbin, which is not on an ordinary user's PATH.
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    try:
        as_root = _enter_namespace()
    except OSError as error:
        raise CommandError(
            "the demo needs root, or else user namespaces, which this system forbids "
            f"({error.strerror}); run it with sudo"
        ) from None
    # Imported only now: gRPC starts threads, and only a single-threaded process can enter a user
    # namespace.
    from pycsi.cli.demo.show import show

    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # not ignored, as in the background
        signal.signal(signal.SIGINT, _interrupt)
    try:
        return 0 if show(directory, as_root=as_root) else 1
    except KeyboardInterrupt as end:
        return _KILLED + (end.args[0] if end.args else signal.SIGINT)


def _interrupt(number: int, _: object) -> None:
    """Handle the signal like Ctrl-C, so that everything is cleaned up."""
    raise KeyboardInterrupt(number)


def _enter_namespace() -> bool:
    """Enter a private mount namespace; return whether the user is root outside it too."""
    try:
        namespace.enter_mounts()
    except PermissionError:
        namespace.enter_mounts_as_user()
        return False
    return True
