"""One pool: its directory, its records, its capacity and its trash."""
