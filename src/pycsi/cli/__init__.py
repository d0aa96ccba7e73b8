"""The pycsi command: serve, the tables, the trash, and the demo."""
