"""`pycsi demo`: the life of real volumes, each claim proved through the published path.

    run            a mount namespace of our own, so that nothing can be left behind
     └ show        a scratch directory with pools, a driver on them, the stages, the summary
        └ lives, services    what an orchestrator calls in the life of a volume, and for its data
           └ claims, copies    each proves one thing with the files and devices themselves

It uses the driver as an orchestrator does: as another process, by gRPC on a unix socket.
"""

import os
import signal
import sys
from pathlib import Path

from pycsi.linux import namespace

_KILLED = 128
"""Added to the number of a signal: the exit status of who was ended by that, as shells show it."""


def run(directory: Path | None) -> int:
    """Show everything that can be shown here; return the exit status, 0 if all was proved."""
    # Where Debian has mkfs; the PATH of a user who is not root lacks it.
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    try:
        as_root = _enter_namespace()
    except OSError as error:
        sys.stderr.write(
            "pycsi demo: it needs root, or else user namespaces, which this system forbids "
            f"({error.strerror}); run it with sudo\n"
        )
        return 1
    # Only now: gRPC starts threads, and a user namespace is for processes of one thread.
    from pycsi.cli.demo.show import show

    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # not ignored, as in the background
        signal.signal(signal.SIGINT, _interrupt)
    try:
        return 0 if show(directory, as_root=as_root) else 1
    except KeyboardInterrupt as end:
        return _KILLED + (end.args[0] if end.args else signal.SIGINT)


def _interrupt(number: int, _: object) -> None:
    """End like by Ctrl-C, so that everything is cleaned up."""
    raise KeyboardInterrupt(number)


def _enter_namespace() -> bool:
    """Enter a mount namespace; tell whether as root, not as a user who is root in there only."""
    try:
        namespace.enter_mounts()
    except PermissionError:
        namespace.enter_mounts_as_user()
        return False
    return True
