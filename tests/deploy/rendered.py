"""The chart as Helm renders it: the values to try, and how to find things in what comes out."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

helm = pytest.importorskip(
    "helm_python", reason="needs helm-python-sdk, which has no wheel for this machine"
)

from kubernetes_validate import utils
from render import ATTRIBUTES_CLASS, CHART, GROUP_SNAPSHOT_CLASS, SNAPSHOT_CLASS, render

Manifest = dict[str, Any]

KUBELET = "/var/lib/kubelet"
OLDEST = (1, 30)
NEWEST = (1, 37)
EVERYTHING: dict[str, Any] = {
    "mode": "single-node",
    "pools": {
        "default": {
            "path": "/srv/ssd",
            "requireMount": True,
            "requirePool": True,
            "freezeLimit": "5s",
        },
        "slow": {"path": "/srv/hdd", "reserve": "5%", "overcommit": 1.5, "retainFor": "ever"},
    },
    "image": {"repository": "registry.example.com/pycsi", "digest": f"sha256:{'a' * 64}"},
    "imagePullSecrets": [{"name": "registry"}],
    "maxVolumesPerNode": 100,
    "ioLimits": {"enabled": True, "kubeletCgroup": "/kubelet.slice"},
    "storageClasses": [
        {
            "name": "fast",
            "default": True,
            "parameters": {"pool": "default", "type": "image"},
            "mountOptions": ["noatime"],
            "allowVolumeExpansion": False,
            "reclaimPolicy": "Retain",
        }
    ],
    "volumeSnapshotClasses": [{"name": "fast", "default": True, "deletionPolicy": "Retain"}],
    "volumeGroupSnapshotClasses": [{"name": "fast", "default": True, "deletionPolicy": "Retain"}],
    "groupSnapshots": {"enabled": True},
    "snapshotMetadata": {"enabled": True, "extraArgs": ["--v=5"]},
    "snapshotController": {"enabled": True, "extraArgs": ["--v=5"]},
    "sidecars": {"provisioner": {"extraArgs": ["--v=5"]}},
    "metrics": {
        "volumes": 0,
        "podMonitor": {"enabled": True, "labels": {"team": "storage"}},
        "prometheusRule": {"enabled": True},
        "dashboard": {"enabled": True},
    },
    "tracing": {
        "endpoint": "http://collector.example.com:14317",
        "extraEnv": [{"name": "OTEL_TRACES_SAMPLER", "value": "always_on"}],
    },
    "networkPolicy": {
        "enabled": True,
        "metricsFrom": [{"namespaceSelector": {}}],
        "snapshotMetadataFrom": [{"namespaceSelector": {}}],
    },
    "criticalPods": {"quota": True},
    "openshift": {"enabled": True},
    "selinux": {"enforcing": True},
    "commonLabels": {"team": "storage"},
    "node": {
        "podAnnotations": {"a": "b"},
        "podLabels": {"c": "d"},
        "extraEnv": [{"name": "TZ", "value": "UTC"}],
        "updateStrategy": {"type": "OnDelete"},
    },
}

# What only the newest Kubernetes takes, beside the rest.
LATEST: dict[str, Any] = {
    **EVERYTHING,
    "csiDriver": {
        "preventPodSchedulingIfMissing": True,
        "seLinuxMount": True,
        "nodeAllocatableUpdatePeriodSeconds": 60,
    },
    "sidecars": {"healthMonitor": {"enabled": True, "extraArgs": ["--v=5"]}},
}


# All of it on many nodes.
MANY: dict[str, Any] = {
    **LATEST,
    "mode": "distributed",
    "controller": {
        "replicas": 3,
        "affinity": {"nodeAffinity": {}},
        "podAnnotations": {"a": "b"},
        "podLabels": {"c": "d"},
    },
}


def values_of(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    return values


VALUES: dict[str, dict[str, Any]] = {
    "default": {},
    **{path.stem: values_of(path) for path in sorted(CHART.glob("values-*.yaml"))},
    "single-node": {"mode": "single-node"},
    "everything": EVERYTHING,
    "csi-1.12": {"csiVersion": "1.12"},
    "latest": LATEST,
    "many": MANY,
    "health-monitor": {"sidecars": {"healthMonitor": {"enabled": True}}},
    "changed-blocks": {
        "snapshotMetadata": {"enabled": True},
        "networkPolicy": {"enabled": True},
        "metrics": {"enabled": False},
    },
    "cert-manager": {"tls": {"certManager": {"enabled": True}}},
    "own-issuer": {
        "tls": {
            "certManager": {
                "enabled": True,
                "issuerRef": {"name": "company", "kind": "ClusterIssuer"},
            }
        }
    },
    "own-secrets": {
        "tls": {"existingSecrets": {"controller": "a", "node": "b"}},
        "snapshotMetadata": {
            "enabled": True,
            "tls": {"existingSecret": "c", "caCert": "LS0t"},
        },
    },
}
NEEDS = {"latest": NEWEST, "many": NEWEST, "health-monitor": NEWEST}
# Of definitions that a cluster need not have.
CUSTOM = {
    "VolumeSnapshotClass",
    "VolumeGroupSnapshotClass",
    "PodMonitor",
    "PrometheusRule",
    "SnapshotMetadataService",
    "Issuer",
    "Certificate",
}
PLATFORMS = (
    "kind",
    "k3s",
    "k0s",
    "microk8s",
    "openshift",
    "microshift",
    "talos",
    "eks",
    "gke",
    "aks",
)
VERSIONS = sorted(
    version
    for text in set(utils.all_versions())
    if (version := tuple(map(int, text.split(".")[:2]))) >= OLDEST
)


def versions(name: str) -> list[tuple[int, ...]]:
    """Return the versions of Kubernetes that take these values."""
    return [version for version in VERSIONS if version >= NEEDS.get(name, OLDEST)]


def objects(values: dict[str, Any], version: tuple[int, ...] = NEWEST) -> list[Manifest]:
    """Return what a cluster of that version is given, which has the snapshot API."""
    return _objects(json.dumps(values), version)


@functools.cache
def _objects(values: str, version: tuple[int, ...]) -> list[Manifest]:
    apis = [SNAPSHOT_CLASS, GROUP_SNAPSHOT_CLASS]
    apis += [ATTRIBUTES_CLASS] if version >= (1, 34) else []
    texts = render(
        json.loads(values), kube_version=f"v{version[0]}.{version[1]}.0", api_versions=tuple(apis)
    )
    return [
        manifest
        for path, text in texts.items()
        if path.endswith(".yaml")
        for manifest in yaml.load_all(text, Loader=yaml.CSafeLoader)  # in C: many are loaded
        if manifest
    ]


def the(manifests: list[Manifest], kind: str, name: str = "") -> Manifest:
    found = [
        item
        for item in manifests
        if item["kind"] == kind and item["metadata"]["name"].endswith(name)
    ]
    assert len(found) == 1, [item["metadata"]["name"] for item in found]
    return found[0]


def pod_of(workload: Manifest) -> Manifest:
    pod: Manifest = workload["spec"]["template"]["spec"]
    return pod


def workloads(manifests: list[Manifest]) -> list[Manifest]:
    return [item for item in manifests if item["kind"] in {"DaemonSet", "Deployment"}]


def containers(pod: Manifest) -> dict[str, Manifest]:
    return {container["name"]: container for container in pod["containers"]}


def node_pod(values: dict[str, Any]) -> Manifest:
    return pod_of(the(objects(values), "DaemonSet"))


def controller_pod(values: dict[str, Any]) -> Manifest:
    return pod_of(the(objects(values), "Deployment", "pycsi-controller"))


def sidecar_pod(values: dict[str, Any]) -> Manifest:
    """Return the pod with the sidecars that call the API server."""
    return node_pod(values) if values.get("mode") == "single-node" else controller_pod(values)


def flags(container: Manifest) -> set[str]:
    return {argument for argument in container["args"] if argument.startswith("--")}


def secret_of(pod: Manifest, volume: str) -> str:
    """Return the name of the Secret that is in a volume of a pod."""
    (found,) = (item["secret"] for item in pod["volumes"] if item["name"] == volume)
    name: str = found["secretName"]
    return name
