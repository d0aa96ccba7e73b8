"""`python -m pycsi` is the `pycsi` command."""

from pycsi.cli import main

if __name__ == "__main__":
    main()
