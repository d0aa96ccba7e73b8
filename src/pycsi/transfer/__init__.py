"""The export format, and moving a volume's data through it: docs/export-format.md describes it.

This layer reads and writes streams of bytes, images and directories. It knows nothing of pools.
"""
