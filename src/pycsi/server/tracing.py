"""Starting what traces the RPCs, which takes a library that need not be installed."""

from pycsi.model.config import Config
from pycsi.model.errors import ConfigError
from pycsi.model.trace import Tracer


def tracer_for(config: Config) -> Tracer | None:
    """Return what traces the RPCs; None, and nothing is imported, if nothing does.

    `ConfigError` if OpenTelemetry is not installed, or its variables cannot be used.
    """
    if not config.tracing:
        return None
    try:
        from pycsi.server.otel.tracer import start
    except ModuleNotFoundError:
        raise ConfigError(
            "--tracing: OpenTelemetry is not installed; install it with pip install "
            "'pycsi-driver[otel]', or leave --tracing out"
        ) from None
    return start(config)
