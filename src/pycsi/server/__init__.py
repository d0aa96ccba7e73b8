"""The driver process: its socket, the interceptor around every RPC, logs and metrics."""
