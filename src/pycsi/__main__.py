"""The `pycsi` command, and `python -m pycsi`."""

import signal

# SIGINT ends the command at any moment, as it ends programs that are not Python: also while this
# imports, and without a traceback. What cleans up takes the signal itself.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from pycsi.cli import main

if __name__ == "__main__":
    main()
