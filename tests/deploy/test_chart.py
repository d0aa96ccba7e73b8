"""The Helm chart, rendered by Helm's own engine for every values file and every Kubernetes."""

import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.rendered import (
    EVERYTHING,
    KUBELET,
    LATEST,
    NEWEST,
    OLDEST,
    PLATFORMS,
    VALUES,
    VERSIONS,
    Manifest,
    containers,
    flags,
    helm,
    node_pod,
    objects,
    pod_of,
    the,
    values_of,
    versions,
    workloads,
)
from driver import Driver, mount_capability
from kubernetes_validate import validate
from render import CHART, manifests

import pycsi
from pycsi.proto import csi_pb2 as csi

# Whether Kubernetes takes it


def test_files() -> None:
    assert {path.stem.removeprefix("values-") for path in CHART.glob("values-*.yaml")} == {
        *PLATFORMS
    }
    assert VERSIONS[0] == OLDEST
    assert VERSIONS[-1] == NEWEST


@pytest.mark.parametrize(
    ("name", "version"),
    [(name, version) for name in VALUES for version in versions(name)],
    ids=lambda item: item if isinstance(item, str) else f"1.{item[1]}",
)
def test_schemas_of_kubernetes(name: str, version: tuple[int, int]) -> None:
    """Every object is valid, and has no field that Kubernetes does not know."""
    for manifest in objects(VALUES[name], version):
        if manifest["kind"] in {"VolumeSnapshotClass", "PodMonitor"}:
            continue  # of CRDs; see below
        _validate(json.dumps(manifest, sort_keys=True), f"{version[0]}.{version[1]}")


@functools.cache
def _validate(manifest: str, version: str) -> None:
    """Validate an object once: most are the same in all values files."""
    validate(json.loads(manifest), version, strict=True)


def test_objects_of_custom_resources() -> None:
    everything = objects(LATEST)
    monitor = the(everything, "PodMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    ports = {
        port["name"]
        for workload in workloads(everything)
        for container in pod_of(workload)["containers"]
        for port in container.get("ports", [])
    }
    scraped = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    assert scraped <= ports
    assert the(everything, "VolumeSnapshotClass") == {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshotClass",
        "metadata": the(everything, "VolumeSnapshotClass")["metadata"],
        "driver": "pycsi.storage",
        "deletionPolicy": "Retain",
    }


@pytest.mark.parametrize("name", VALUES)
def test_lint(name: str) -> None:
    """`helm lint --strict` has nothing to say, but that an icon is recommended."""
    for version in versions(name):
        said = helm.lint(
            CHART, VALUES[name], strict=True, kube_version=f"v{version[0]}.{version[1]}.0"
        )
        errors = [message["error"] for message in said["messages"]]
        assert errors == ["icon is recommended"]
        assert said["errors"] == []


def test_versions() -> None:
    chart = values_of(CHART / "Chart.yaml")
    assert chart["version"] == chart["appVersion"] == pycsi.__version__


def test_drift() -> None:
    """The plain manifests are what `make manifests` makes of the chart."""
    folder = CHART.parents[1] / "kubernetes"
    assert manifests() == {path.name: path.read_text() for path in folder.glob("*.yaml")}


@pytest.mark.parametrize("name", ["single-node.yaml", "distributed.yaml"])
def test_plain_manifests(name: str) -> None:
    """They need neither Helm nor the snapshot API, and bring the namespace with its labels."""
    documents = list(yaml.safe_load_all(manifests()[name]))
    namespace = the(documents, "Namespace")["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"
    assert not any("snapshot" in item["apiVersion"] for item in documents)
    assert "Helm" not in manifests()[name].split("\n", 1)[1]
    for item in documents:
        if "namespace" in item["metadata"]:
            assert item["metadata"]["namespace"] == namespace["name"]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"mod": "single-node"}, "mod"),
        ({"mode": "many"}, "mode"),
        ({"node": {"toleration": []}}, "toleration"),
        ({"node": {"updateStrategy": {"maxSurge": 1}}}, "maxSurge"),
        ({"sidecars": {"attacher": {}}}, "attacher"),
        ({"pools": {"default": {"path": "data"}}}, "path"),
        ({"pools": {"default": {"path": "/data,reserve=1"}}}, "path"),
        ({"pools": {"default": {"path": "/data/"}}}, "path"),
        ({"pools": {"default": {"reserve": 10}}}, "reserve"),
        ({"pools": {"default": {"reserved": "1%"}}}, "reserved"),
        ({"pools": {"default": {"path": "/var/lib/../x"}}}, "path"),
        ({"pools": {"default": {"path": "/."}}}, "path"),
        ({"pools": {"default": {"path": "/tmp"}}}, "default"),
        ({"pools": {"default": {"path": "/var"}}}, "kubelet"),
        ({"pools": {"default": {"path": f"{KUBELET}/pool"}}}, "kubelet"),
        ({"pools": {"a": {"path": "/srv"}, "b": {"path": "/srv/b"}}}, "pools.b"),
        ({"pools": {"a": {"path": "/srv"}, "b": {"path": "/srv"}}}, "pools.b"),
        ({"pools": {"default": {"reserve": "100%"}}}, "reserve"),
        ({"pools": {"default": {"freezeLimit": "0s"}}}, "freezeLimit"),
        ({"pools": {"default": {"uuid": "-" * 36}}}, "uuid"),
        ({"kubeletDir": "/var/lib/kubelet/"}, "kubeletDir"),
        ({"kubeletDir": "/var/lib/../kubelet"}, "kubeletDir"),
        ({"driverName": "a..b"}, "driverName"),
        ({"storageClasses": [{"name": "a..b"}]}, "name"),
        ({"nameOverride": "Foo_Bar"}, "nameOverride"),
        ({"image": {"repository": "registry/pycsi:1.0"}}, "repository"),
        ({"commonLabels": {"app.kubernetes.io/name": "x"}}, "app.kubernetes.io/name"),
        ({"node": {"podLabels": {"helm.sh/chart": "x"}}}, "helm.sh/chart"),
        ({"driverName": "has space"}, "driverName"),
        ({"driverName": "x" * 64}, "driverName"),
        ({"storageClasses": [{"name": "a", "type": "image"}]}, "type"),
        ({"storageClasses": [{"name": "a", "parameters": {"n": 1}}]}, "parameters"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"groupSnapshots": {"enabled": True}}, "single-node"),
        ({"csiVersion": "1.11"}, "csiVersion"),
        ({"csiDriver": {"attachRequired": True}}, "attachRequired"),
        ({"csiDriver": {"nodeAllocatableUpdatePeriodSeconds": 9}}, "10"),
        ({"csiDriver": {"nodeAllocatableUpdatePeriodSeconds": 60}}, "maxVolumesPerNode"),
        ({"csiDriver": {"seLinuxMount": True}}, "StorageClass pycsi"),
        (
            {"csiVersion": "1.12", "sidecars": {"healthMonitor": {"enabled": True}}},
            "csiVersion 1.13",
        ),
        (
            {"metrics": {"enabled": False, "podMonitor": {"enabled": True}}},
            "metrics.enabled",
        ),
    ],
)
def test_refusal(values: dict[str, Any], word: str) -> None:
    """A value that cannot work, or that nobody reads, is refused by its name."""
    with pytest.raises(helm.HelmError, match=word):
        objects(values)


@pytest.mark.parametrize(
    ("values", "needed"),
    [
        ({"csiDriver": {"preventPodSchedulingIfMissing": True}}, (1, 36)),
        (
            {
                "maxVolumesPerNode": 9,
                "csiDriver": {"nodeAllocatableUpdatePeriodSeconds": 60},
            },
            (1, 33),
        ),
        ({"sidecars": {"healthMonitor": {"enabled": True}}}, (1, 37)),
    ],
)
def test_refusal_by_version(values: dict[str, Any], needed: tuple[int, int]) -> None:
    """A cluster that does not know a field would drop it; the refusal names the version."""
    for version in VERSIONS:
        if version >= needed:
            objects(values, version)
        else:
            with pytest.raises(helm.HelmError, match=rf"needs Kubernetes 1\.{needed[1]};"):
                objects(values, version)


# What the driver is given


@pytest.mark.parametrize("name", VALUES)
def test_driver_takes_its_arguments(
    serve: Callable[..., Driver], tmp_path: Path, name: str
) -> None:
    """The real driver starts with the arguments that it has in the pod, on other paths."""
    container = containers(node_pod(VALUES[name]))["pycsi"]
    command, *arguments = container["args"]
    assert command == "serve"
    pools, options = [], []
    for argument in arguments:
        if match := re.fullmatch(r"--pool=(\w+)=([^,]+)(.*)", argument):
            place = tmp_path / match[1]
            place.mkdir()
            mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert match[2] in mounted
            pools.append(f"{match[1]}={place}{re.sub(',require-(mount|pool)', '', match[3])}")
        elif not argument.startswith(("--endpoint=", "--node-id=", "--metrics-address=")):
            options.append(argument)
    driver = serve(*pools, options=tuple(options))
    assert driver.identity.Probe(csi.ProbeRequest()).ready.value
    info = driver.identity.GetPluginInfo(csi.GetPluginInfoRequest())
    assert info.name == the(objects(VALUES[name]), "CSIDriver")["metadata"]["name"]


def test_controller_takes_its_arguments(serve: Callable[..., Driver]) -> None:
    deployment = the(objects({}), "Deployment")
    _, *arguments = containers(pod_of(deployment))["pycsi"]["args"]
    driver = serve(options=tuple(item for item in arguments if "--endpoint" not in item))
    assert driver.identity.Probe(csi.ProbeRequest()).ready.value


@pytest.mark.parametrize("name", VALUES)
def test_paths(name: str) -> None:
    """What the kubelet names is at the same place inside, and mounts go where they are seen."""
    values = VALUES[name]
    kubelet = values.get("kubeletDir", KUBELET)
    pod = node_pod(values)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {
        mount["mountPath"]: (volumes[mount["name"]]["hostPath"]["path"], mount["mountPropagation"])
        for mount in containers(pod)["pycsi"]["volumeMounts"]
        if "mountPropagation" in mount
    }
    pools = {pool["path"] for pool in values.get("pools", {}).values()} or {"/var/lib/pycsi"}
    for path, (outside, _) in mounts.items():
        assert path == outside
    assert {path: propagation for path, (_, propagation) in mounts.items()} == {
        f"{kubelet}/pods": "Bidirectional",
        f"{kubelet}/plugins/kubernetes.io/csi": "Bidirectional",
        **dict.fromkeys(pools, "HostToContainer"),
    }
    assert volumes["dev"]["hostPath"]["path"] == "/dev"
    # A file there would be the host's.
    assert containers(pod)["pycsi"]["terminationMessagePath"].startswith("/tmp/")


@pytest.mark.parametrize("name", VALUES)
def test_kubelet_directory_is_one(name: str) -> None:
    """Every path of the kubelet's follows `kubeletDir`."""
    elsewhere = "/elsewhere/of/kubelet"
    moved = yaml.safe_dump_all(objects({**VALUES[name], "kubeletDir": elsewhere}))
    default = yaml.safe_dump_all(objects({**VALUES[name], "kubeletDir": KUBELET}))
    assert KUBELET not in moved
    assert moved.replace(elsewhere, KUBELET) == default


def test_pool_that_is_a_disk() -> None:
    """A node that lacks the disk runs the driver, too, which takes no other place for it."""
    pod = node_pod(EVERYTHING)
    kinds = {
        v["hostPath"]["path"]: v["hostPath"]["type"] for v in pod["volumes"] if "hostPath" in v
    }
    assert kinds["/srv/ssd"] == kinds["/srv/hdd"] == "DirectoryOrCreate"
    (ssd,) = (item for item in containers(pod)["pycsi"]["args"] if "=/srv/ssd" in item)
    assert ",require-mount,require-pool" in ssd


def test_sockets() -> None:
    """The kubelet finds the socket at the path that the registrar tells it."""
    pod = node_pod({})
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    place = volumes["socket"]["hostPath"]["path"]
    assert place == f"{KUBELET}/plugins/pycsi.storage"
    assert f"--kubelet-registration-path={place}/csi.sock" in flags(containers(pod)["registrar"])
    assert volumes["registration"]["hostPath"]["path"] == f"{KUBELET}/plugins_registry"
    for name, container in containers(pod).items():
        assert {"name": "socket", "mountPath": "/csi"} in container["volumeMounts"]
        if name != "pycsi":
            assert "--csi-address=/csi/csi.sock" in flags(container)


# Who runs where


def test_modes() -> None:
    """In mode single-node one pod has it all; otherwise the resizer is a Deployment's."""
    sidecars = {"pycsi", "registrar", "livenessprobe", "provisioner", "snapshotter"}
    single, many = objects({"mode": "single-node"}), objects({})
    assert set(containers(pod_of(the(single, "DaemonSet")))) == sidecars | {"resizer"}
    assert workloads(single) == [the(single, "DaemonSet")]
    assert set(containers(pod_of(the(many, "DaemonSet")))) == sidecars
    controller = containers(pod_of(the(many, "Deployment")))
    assert set(controller) == {"pycsi", "livenessprobe", "resizer"}
    assert "--mode=controller" in flags(controller["pycsi"])
    assert not any("pool" in item or "node-id" in item for item in flags(controller["pycsi"]))
    assert the(many, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


@pytest.mark.parametrize(
    ("mode", "told"), [("single-node", "single-node"), ("distributed", "node")]
)
def test_flags(mode: str, told: str) -> None:
    """Each sidecar does what it can do on a node."""
    pod = containers(node_pod({"mode": mode}))
    assert f"--mode={told}" in flags(pod["pycsi"])
    assert "--node-id=$(NODE_NAME)" in flags(pod["pycsi"])
    assert {
        "--node-deployment=true",
        "--strict-topology=true",
        "--immediate-topology=false",
        "--enable-capacity=true",
        "--capacity-ownerref-level=1",
        "--extra-create-metadata=true",
    } <= flags(pod["provisioner"])
    # It would be taken for every claim's wish, and on another filesystem no claim got a directory.
    assert not any("default-fstype" in flag for flag in flags(pod["provisioner"]))
    environment = {item["name"] for item in pod["provisioner"]["env"]}
    assert environment == {"NODE_NAME", "NAMESPACE", "POD_NAME"}
    # Without it the sidecar serves all snapshots, also where nobody labels them.
    assert ("--node-deployment=true" in flags(pod["snapshotter"])) == (mode == "distributed")
    assert not any("leader-election" in flag for item in pod.values() for flag in flags(item))


def test_controller_elects_a_leader() -> None:
    pod = containers(pod_of(the(objects({}), "Deployment")))
    assert "--leader-election=true" in flags(pod["resizer"])
    assert "--handle-volume-inuse-error=false" in flags(pod["resizer"])


@pytest.mark.parametrize("enabled", [True, False])
def test_group_snapshots(enabled: bool) -> None:
    """Both sides are told, also of no groups: upstream's default has changed."""
    gate = f"--feature-gates=CSIVolumeGroupSnapshot={'true' if enabled else 'false'}"
    made = objects({**EVERYTHING, "groupSnapshots": {"enabled": enabled}})
    assert gate in flags(containers(pod_of(the(made, "DaemonSet")))["snapshotter"])
    controller = the(made, "Deployment", "snapshot-controller")
    assert gate in flags(containers(pod_of(controller))["snapshot-controller"])


def _resizer(version: tuple[int, ...], mode: str, tag: str = "") -> tuple[str, bool]:
    """Return the resizer's tag, and whether it is told to write no states of a recovery."""
    values = {"mode": mode, "sidecars": {"resizer": {"image": {"tag": tag}}}}
    found = [
        container
        for workload in workloads(objects(values, version))
        for name, container in containers(pod_of(workload)).items()
        if name == "resizer"
    ]
    assert len(found) == 1
    off = "--feature-gates=RecoverVolumeExpansionFailure=false"
    return found[0]["image"].rpartition(":")[2], off in flags(found[0])


@pytest.mark.parametrize("mode", ["distributed", "single-node"])
def test_old_kubernetes_is_not_offered_recovery(mode: str) -> None:
    """Kubelets before 1.32 do not know the states that csi-resizer always writes since 2.3."""
    for version in VERSIONS:
        expected = ("v2.2.1", True) if version < (1, 32) else ("v2.3.0", False)
        assert _resizer(version, mode) == expected
    # It would not start with a gate that it does not know.
    assert _resizer(OLDEST, mode, "v2.3.1") == ("v2.3.1", False)
    assert _resizer(OLDEST, mode, "v2.1.0") == ("v2.1.0", True)
    assert _resizer(OLDEST, mode, "mirrored") == ("mirrored", False)


@pytest.mark.parametrize("mode", ["distributed", "single-node"])
def test_health_monitor(mode: str) -> None:
    """There is one for each driver that has volumes, and none unless it is wanted."""
    assert not any("health-monitor" in str(item) for item in objects({"mode": mode}))
    made = objects({"mode": mode, "sidecars": {"healthMonitor": {"enabled": True}}})
    holders = [
        workload["kind"]
        for workload in workloads(made)
        if "health-monitor" in containers(pod_of(workload))
    ]
    assert holders == ["DaemonSet"]
    # Of several one would be the leader, and know only the volumes of its own node.
    monitor = containers(pod_of(the(made, "DaemonSet")))["health-monitor"]
    assert not any("leader" in flag for flag in flags(monitor))


@pytest.mark.parametrize("mode", ["distributed", "single-node"])
def test_csi_version(mode: str) -> None:
    """The driver's own default is not told to it."""
    for version, told in (("1.13", False), ("1.12", True)):
        for workload in workloads(objects({"mode": mode, "csiVersion": version})):
            driver = flags(containers(pod_of(workload))["pycsi"])
            assert (f"--csi-version={version}" in driver) == told
            assert any("csi-version" in flag for flag in driver) == told


def test_snapshot_controller() -> None:
    """It labels snapshots with their nodes, and is there only if wanted."""
    assert not any("snapshot-controller" in str(item) for item in objects({}))
    controller = the(
        objects({"snapshotController": {"enabled": True}}), "Deployment", "snapshot-controller"
    )
    told = flags(containers(pod_of(controller))["snapshot-controller"])
    assert "--enable-distributed-snapshotting=true" in told


@pytest.mark.parametrize("name", VALUES)
def test_no_surge(name: str) -> None:
    """Two drivers are never on one node: the second could have neither socket nor pool."""
    strategy = the(objects(VALUES[name]), "DaemonSet")["spec"]["updateStrategy"]
    assert strategy.get("rollingUpdate", {}).get("maxSurge", 0) == 0
    assert strategy["type"] in {"RollingUpdate", "OnDelete"}


def test_nodes() -> None:
    """The driver is on every node and stays there, as long as the node itself works."""
    pod = node_pod({})
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["priorityClassName"] == "system-node-critical"
    assert not pod.get("hostNetwork")
    assert not pod.get("hostPID")


def test_classes() -> None:
    """The scheduler chooses the node first; only what is asked for becomes a default."""
    single = the(objects({}), "StorageClass")
    assert single["provisioner"] == "pycsi.storage"
    assert single["volumeBindingMode"] == "WaitForFirstConsumer"
    assert single["allowVolumeExpansion"] is True
    assert "annotations" not in single["metadata"]
    fast = the(objects(EVERYTHING), "StorageClass")
    assert fast["metadata"]["annotations"] == {
        "storageclass.kubernetes.io/is-default-class": "true"
    }
    assert fast["allowVolumeExpansion"] is False


def test_attributes_classes() -> None:
    """They are where the cluster has them and a sidecar can change a volume."""

    def names(mode: str, version: tuple[int, int]) -> set[str]:
        made = objects({"mode": mode}, version)
        return {v["metadata"]["name"] for v in made if v["kind"] == "VolumeAttributesClass"}

    assert names("single-node", (1, 34)) == {"pycsi-delete", "pycsi-retain"}
    assert names("single-node", (1, 33)) == set()
    # Without the capability MODIFY_VOLUME csi-provisioner refuses claims that name a class.
    assert names("distributed", (1, 34)) == set()


def test_odd_values() -> None:
    """What YAML would read as a number or a truth value stays a name, and numbers stay whole."""
    odd = objects(
        {
            "driverName": "123",
            "storageClasses": [{"name": "true"}],
            "nameOverride": "null",
            "maxVolumesPerNode": 1000000,
            "node": {"terminationGracePeriodSeconds": 1000000},
        }
    )
    assert the(odd, "CSIDriver")["metadata"]["name"] == "123"
    assert the(odd, "StorageClass")["metadata"]["name"] == "true"
    labels = the(odd, "DaemonSet")["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == "null"
    pod = pod_of(the(odd, "DaemonSet"))
    assert "--max-volumes-per-node=1000000" in flags(containers(pod)["pycsi"])
    assert pod["terminationGracePeriodSeconds"] == 1000000
    assert not any(item["kind"] == "Pod" for item in objects({"storageClasses": None}))


@pytest.mark.parametrize("name", ["values-openshift", "values-microshift"])
def test_openshift_chooses_users(name: str) -> None:
    """Its default constraints admit only users of the namespace's own range."""
    values = {**VALUES[name], "snapshotController": {"enabled": True}}
    made = objects(values)
    pods = [item["spec"] for item in made if item["kind"] == "Pod"]
    pods += [pod_of(item) for item in made if item["kind"] == "Deployment"]
    for pod in pods:
        assert pod["securityContext"] == {"runAsNonRoot": True}


def test_snapshot_controller_stays() -> None:
    """Deleting its manifest, or the driver's, does not delete the other."""
    documents = list(yaml.safe_load_all(manifests()["snapshot-controller.yaml"]))
    assert not any(item["kind"] == "Namespace" for item in documents)
    spaces = {item["metadata"].get("namespace", "kube-system") for item in documents}
    assert spaces == {"kube-system"}


def test_classes_are_accepted(serve: Callable[..., Driver], pool: Path) -> None:
    """The driver creates volumes with the parameters of each class that is shipped."""
    driver = serve(pool)
    for number, values in enumerate(VALUES.values()):
        made = objects(values)
        mutable = [i["parameters"] for i in made if i["kind"] == "VolumeAttributesClass"]
        for item in made:
            if item["kind"] == "StorageClass":
                request = csi.CreateVolumeRequest(
                    name=f"{number}-{item['metadata']['name']}",
                    parameters=item.get("parameters"),
                    mutable_parameters=mutable[-1] if mutable else None,
                    capacity_range=csi.CapacityRange(required_bytes=32 << 20),
                    volume_capabilities=[mount_capability()],
                )
                driver.controller.CreateVolume(request)


# What must never change between versions


def test_selectors() -> None:
    for values in ({}, EVERYTHING):
        for workload in workloads(objects(values)):
            component = workload["metadata"]["labels"]["app.kubernetes.io/component"]
            assert workload["spec"]["selector"]["matchLabels"] == {
                "app.kubernetes.io/name": "pycsi",
                "app.kubernetes.io/instance": "pycsi",
                "app.kubernetes.io/component": component,
            }
            labels = workload["spec"]["template"]["metadata"]["labels"]
            assert workload["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_immutable_fields_of_the_driver() -> None:
    for values in VALUES.values():
        spec = the(objects(values), "CSIDriver")["spec"]
        assert spec["attachRequired"] is False
        assert spec["volumeLifecycleModes"] == ["Persistent", "Ephemeral"]
        assert spec["fsGroupPolicy"] == "File"
        assert spec["storageCapacity"] is True
        assert spec["podInfoOnMount"] is True


def test_other_fields_of_the_driver() -> None:
    """Fields that not every version knows are there only if they are wanted."""
    chosen = LATEST["csiDriver"]
    for values in VALUES.values():
        spec = the(objects(values), "CSIDriver")["spec"]
        if values is LATEST:
            assert chosen.items() <= spec.items()
        else:
            assert spec["seLinuxMount"] is False
            assert spec.keys() & chosen.keys() == {"seLinuxMount"}


def test_names() -> None:
    """Names of a release's objects, which an upgrade must find again."""
    assert sorted({f"{i['kind']}/{i['metadata']['name']}" for i in objects({})}) == [
        "CSIDriver/pycsi.storage",
        "ClusterRole/pycsi-controller",
        "ClusterRole/pycsi-node",
        "ClusterRoleBinding/pycsi-controller",
        "ClusterRoleBinding/pycsi-node",
        "DaemonSet/pycsi-node",
        "Deployment/pycsi-controller",
        "Pod/pycsi-test",
        "PodDisruptionBudget/pycsi-controller",
        "Role/pycsi-controller",
        "Role/pycsi-node",
        "RoleBinding/pycsi-controller",
        "RoleBinding/pycsi-node",
        "ServiceAccount/pycsi-controller",
        "ServiceAccount/pycsi-node",
        "StorageClass/pycsi",
        "VolumeSnapshotClass/pycsi",
    ]


# What they may do

UPSTREAM = {
    "csi-provisioner": "v6.4.0",
    "csi-snapshotter": "v8.7.0",
    "snapshot-controller": "v8.7.0",
    "csi-resizer": "v2.3.0",
    "csi-node-driver-registrar": "v2.18.0",
    "livenessprobe": "v2.20.0",
    "csi-external-health-monitor-controller": "v0.19.0",
}


@pytest.mark.parametrize("name", VALUES)
def test_images(name: str) -> None:
    """Sidecars are upstream's at the versions that this release was tried with."""
    for workload in workloads(objects(VALUES[name])):
        for container in pod_of(workload)["containers"]:
            image, _, tag = container["image"].rpartition(":")
            if container["name"] == "pycsi":
                assert tag in {pycsi.__version__, "a" * 64}
            else:
                upstream = image.removeprefix("registry.k8s.io/sig-storage/")
                assert tag == UPSTREAM[upstream]
            assert container["imagePullPolicy"] == "IfNotPresent"


def sidecars() -> Iterator[tuple[Manifest, Manifest]]:
    for values in (
        {},
        VALUES["health-monitor"],
        {"mode": "single-node", "snapshotController": {"enabled": True}},
    ):
        for workload in workloads(objects(values)):
            pod = pod_of(workload)
            for container in pod["containers"]:
                if (container["name"], workload["kind"]) != ("pycsi", "DaemonSet"):
                    yield pod, container


def test_sidecars_have_nothing() -> None:
    """But for the driver of a node every container is confined; in Deployments nobody is root."""
    for pod, container in sidecars():
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "privileged" not in security
        assert security.get("runAsUser") == 0 or pod["securityContext"]["runAsNonRoot"]


def test_driver_is_privileged_and_nothing_more() -> None:
    driver = containers(node_pod({}))["pycsi"]
    assert driver["securityContext"] == {
        "privileged": True,
        "readOnlyRootFilesystem": True,
        "runAsUser": 0,
    }


def test_tokens() -> None:
    """Only a container that calls the API server can read a token."""
    for values in ({}, LATEST):
        for workload in workloads(objects(values)):
            pod = pod_of(workload)
            assert pod["automountServiceAccountToken"] is False
            holders = {
                container["name"]
                for container in pod["containers"]
                if any(mount["name"] == "token" for mount in container.get("volumeMounts", []))
            }
            clients = {"provisioner", "snapshotter", "resizer", "snapshot-controller"}
            clients.add("health-monitor")
            assert holders == clients & set(containers(pod))


def test_selinux() -> None:
    """On enforcing hosts the sidecars of a node can reach the driver's socket."""
    for container in containers(node_pod(LATEST)).values():
        assert container["securityContext"]["privileged"] is True


@pytest.mark.parametrize("mode", ["single-node", "distributed"])
def test_rate_limits(mode: str) -> None:
    """Every sidecar may ask the API server often enough for a burst of claims."""
    asking = {}
    for workload in workloads(objects({**VALUES["health-monitor"], "mode": mode})):
        for name, container in containers(pod_of(workload)).items():
            if any(mount["name"] == "token" for mount in container.get("volumeMounts", [])):
                told = dict(flag.split("=", 1) for flag in flags(container) if "=" in flag)
                asking[name] = {flag: int(told[flag]) for flag in told if "kube-api-" in flag}
    assert asking.keys() == {"provisioner", "snapshotter", "resizer", "health-monitor"}
    for name, limits in asking.items():
        wanted = {"--kube-api-qps", "--kube-api-burst"}
        if name == "provisioner":  # a limit of their own for the capacities that it publishes
            wanted |= {"--kube-api-capacity-qps", "--kube-api-capacity-burst"}
        assert limits.keys() == wanted
        assert min(limits.values()) >= 20


@pytest.mark.parametrize("name", VALUES)
def test_ports(name: str) -> None:
    """No two containers of a pod listen on one port."""
    for workload in workloads(objects(VALUES[name])):
        pod = pod_of(workload)
        ports = [port for c in pod["containers"] for port in c.get("ports", [])]
        numbers = [port["containerPort"] for port in ports]
        assert len(numbers) == len(set(numbers))
        names = [port["name"] for port in ports]
        assert len(names) == len(set(names))
        told = [flag for c in pod["containers"] for flag in flags(c) if "-endpoint=:" in flag]
        listening = {int(flag.rpartition(":")[2]) for flag in told}
        assert listening <= set(numbers)


def test_probes() -> None:
    """The driver is asked on the port on which its livenessprobe answers, and in time."""
    pod = containers(node_pod({}))
    assert "--http-endpoint=:9808" in flags(pod["livenessprobe"])
    assert "--probe-timeout=3s" in flags(pod["livenessprobe"])
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = pod["pycsi"][kind]
        assert probe["httpGet"] == {"path": "/healthz", "port": "healthz"}
        assert probe["timeoutSeconds"] > 3
    assert {"name": "healthz", "containerPort": 9808} in pod["pycsi"]["ports"]


def test_network_policy() -> None:
    """Every pod of the driver is selected, and metrics are the only way in."""
    everything = objects(LATEST)
    policy = the(everything, "NetworkPolicy")["spec"]
    for workload in workloads(everything):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
        component = policy["podSelector"]["matchExpressions"][0]
        assert labels[component["key"]] in component["values"]
    opened = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    metrics = {
        port["containerPort"]
        for workload in workloads(everything)
        for container in pod_of(workload)["containers"]
        for port in container.get("ports", [])
        if port["name"] not in {"healthz", "registration"}
    }
    assert metrics <= opened
    assert opened.isdisjoint({9808, 9809})
