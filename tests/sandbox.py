"""A machine to oneself: shell scripts run where nothing of the real machine's pools can be reached.

A script has mounts and processes of its own. /etc/pycsi, /run/pycsi, /var/lib/pycsi, /mnt and /srv
are empty, as on a machine on which pycsi was never used, and all that is mounted or started there
is gone when the script ends.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import needs
from terminal import environment

_PLACES = ("etc", "work", "pool", "mnt", "srv")

_SCENE = """
set -e
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$HERE/etc,workdir=$HERE/work" /etc
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /var/lib
mkdir /var/lib/pycsi
mount --bind "$HERE/pool" /var/lib/pycsi
mount --bind "$HERE/mnt" /mnt
mount --bind "$HERE/srv" /srv
cd /srv
mkdir /run/bin
printf '#!/bin/sh\nexec "%s" -m pycsi "$@"\n' "$PYTHON" >/run/bin/pycsi
chmod +x /run/bin/pycsi
PATH=/run/bin:$PATH
set +e
"""


def scripted(folder: Path, script: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a script of bash as root of a machine whose disk is below `folder`; `pycsi` is there.

    Output that is no UTF-8 is shown escaped.
    """
    needs("root", met=os.geteuid() == 0)
    needs("unshare", met=shutil.which("unshare") is not None)
    for place in _PLACES:
        (folder / place).mkdir(exist_ok=True)
    private = ("--mount", "--propagation", "private", "--pid", "--fork", "--kill-child")
    return subprocess.run(
        ["unshare", *private, "--mount-proc", "bash", "-c", _SCENE + script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=120,
        check=False,
        env=environment(HERE=str(folder), PYTHON=sys.executable, **more),
    )
