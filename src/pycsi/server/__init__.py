"""The process: its socket, what surrounds every RPC, logs and metrics."""
