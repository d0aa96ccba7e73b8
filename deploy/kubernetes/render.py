"""Render the plain manifests here, and those for monitoring, from the chart: `make manifests`.

They are what `helm template` gives for the default values of each mode, without Helm's own labels,
behind the namespace that they need.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
from helm_python import _native

HERE = Path(__file__).resolve().parent
CHART = HERE.parent / "helm" / "pycsi"
NAME = "pycsi"
NAMESPACE = "pycsi-system"

SNAPSHOT_CLASS = "snapshot.storage.k8s.io/v1/VolumeSnapshotClass"
GROUP_SNAPSHOT_CLASS = "groupsnapshot.storage.k8s.io/v1/VolumeGroupSnapshotClass"
ATTRIBUTES_CLASS = "storage.k8s.io/v1/VolumeAttributesClass"
HELM_LABELS = ("helm.sh/chart:", "app.kubernetes.io/managed-by:")

# What tls-secrets.sh makes.
SECRETS = {role: f"{NAME}-{role}-tls" for role in ("controller", "node")}

# The driver is privileged, for it mounts.
NAMESPACE_MANIFEST = f"""\
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    pod-security.kubernetes.io/enforce: privileged
    pod-security.kubernetes.io/audit: privileged
    pod-security.kubernetes.io/warn: privileged
"""


def render(
    values: dict[str, Any],
    *,
    namespace: str = NAMESPACE,
    kube_version: str = "",
    api_versions: tuple[str, ...] = (),
) -> dict[str, str]:
    """Return the chart's rendered templates by their paths below `templates/`.

    Like `helm template --kube-version --api-versions`, two options that helm_python's own method
    does not hand on to the library. Without a version it is the newest that the library knows.
    """
    options: dict[str, Any] = {"name": NAME, "namespace": namespace}
    if kube_version:
        options["kube_version"] = kube_version
    if api_versions:
        options["api_versions"] = list(api_versions)
    with helm_python.Chart.load(CHART) as chart:
        handle = chart._raw()  # noqa: SLF001  (see above)
        rendered = _native.call_string(
            "helm_render", handle, json.dumps(values), json.dumps(options)
        )
    prefix = f"{NAME}/templates/"
    return {path.removeprefix(prefix): text for path, text in json.loads(rendered).items()}


def manifests() -> dict[str, str]:
    """Return the content of each manifest by its file name."""
    single = render({"mode": "single-node"}, api_versions=(SNAPSHOT_CLASS, ATTRIBUTES_CLASS))
    many = render({"mode": "distributed", "tls": {"existingSecrets": SECRETS}})
    # Where upstream's is, and where it stays when the driver is deleted.
    snapshots = render({"snapshotController": {"enabled": True}}, namespace="kube-system")
    driver = ("node/", "controller/", "csidriver.yaml", "classes/storageclasses.yaml")
    return {
        "single-node.yaml": _manifest(
            "the driver on the one node of a cluster", NAMESPACE_MANIFEST, *_chosen(single, driver)
        ),
        "distributed.yaml": _manifest(
            "the driver on each node of a cluster, and a controller; needs the Secrets of "
            "tls-secrets.sh",
            NAMESPACE_MANIFEST,
            *_chosen(many, driver),
        ),
        "snapshot-controller.yaml": _manifest(
            "for clusters that have none; needs the snapshot CRDs",
            *_chosen(snapshots, ("snapshot-controller/",)),
        ),
        "snapshot-class.yaml": _manifest(
            "needs the snapshot CRDs", single["classes/volumesnapshotclasses.yaml"]
        ),
        "attributes-classes.yaml": _manifest(
            "needs Kubernetes 1.34",
            single["classes/volumeattributesclasses.yaml"],
        ),
    }


def monitoring() -> dict[str, str]:
    """Return what is for Prometheus and Grafana without the chart, by file name."""
    rendered = render({"metrics": {"prometheusRule": {"enabled": True}}})
    return {
        "prometheusrule.yaml": _manifest(
            "alerts, for the Prometheus operator", rendered["monitoring/prometheusrule.yaml"]
        ),
        "dashboard.json": (CHART / "files" / "dashboard.json").read_text(),
    }


def _chosen(rendered: dict[str, str], paths: tuple[str, ...]) -> Iterator[str]:
    """Yield what is rendered of the files in `paths`, accounts and permissions first."""
    for path in sorted(rendered, key=lambda path: (not path.endswith("rbac.yaml"), path)):
        if path.startswith(paths):
            yield rendered[path]


def _manifest(purpose: str, *documents: str) -> str:
    texts = (document.strip().removeprefix("---").strip() for document in documents)
    lines = "\n---\n".join(filter(None, texts)).splitlines()
    kept = (line for line in lines if not line.strip().startswith(HELM_LABELS))
    return "\n".join((f"# Made of the Helm chart by `make manifests`: {purpose}.", *kept, ""))


def main() -> None:
    for folder, texts in ((HERE, manifests()), (HERE.parent / "monitoring", monitoring())):
        for name, text in texts.items():
            (folder / name).write_text(text)
            sys.stdout.write(f"{folder / name}\n")


if __name__ == "__main__":
    main()
