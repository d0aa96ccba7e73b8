"""The traces of RPCs, with OpenTelemetry: spans, sent over OTLP. Imported with `--tracing` only."""
