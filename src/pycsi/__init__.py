"""A CSI driver for local storage."""

__version__ = "0.1.0"
