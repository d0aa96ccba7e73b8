"""The pycsi command: serve, the tables, the trash, and the demo."""

from pycsi.cli.command import main

__all__ = ["main"]
