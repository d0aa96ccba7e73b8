"""What the driver tells Prometheus, and probes of its health, over HTTP.

A scrape reads memory, and what a thread of its own has measured: no disk keeps it waiting.
"""
