# `make image` builds this with docker, podman or buildah. It runs with its root filesystem read-only:
# as root with the host's /dev on a node, as any user in mode `controller`.

FROM debian:trixie-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv
# The virtual environment that the image gets has no pip of its own.
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/pycsi
WORKDIR /src
COPY LICENSE README.md pyproject.toml ./
COPY deploy/release/commit_hook.py deploy/release/commit_hook.py
COPY src src
# Python cannot keep what it compiles on a read-only root: not compiled here, it would be compiled at
# each start, which then takes four times as long. By hash, for a copy's times may be rounded.
RUN /opt/pip/bin/pip --python /opt/pycsi install --no-cache-dir --no-compile --only-binary=:all: '.[otel]' \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/pycsi/lib

ARG REVISION
RUN echo "$REVISION" > "$(/opt/pycsi/bin/python3 -c 'import pycsi; print(pycsi.__path__[0])')/commit"

FROM debian:trixie-slim
# xfsprogs needs ICU, GLib and D-Bus for xfs_scrub alone, which the driver does not call: without them
# the image is a fifth smaller.
RUN apt-get update \
    && apt-get install -y --no-install-recommends btrfs-progs cryptsetup-bin e2fsprogs python3 xfsprogs \
    && dpkg --purge --force-depends libdbus-1-3 libglib2.0-0t64 libicu76 python3-dbus \
    && rm -rf /usr/sbin/xfs_scrub* /var/cache/apt/* /var/lib/apt/lists/* /var/log/*
COPY --from=build /opt/pycsi /opt/pycsi
ENV PATH=/opt/pycsi/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="pycsi" \
    org.opencontainers.image.description="A CSI driver for local storage" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION"
ENTRYPOINT ["pycsi"]
CMD ["--help"]
