"""`python -m pycsi` is the `pycsi` command."""

from pycsi.cli.main import main

if __name__ == "__main__":
    main()
