"""Stubs generated from csi.proto by `make proto`; not edited by hand."""
