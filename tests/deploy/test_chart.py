"""The Helm chart, rendered by Helm's own engine for every values file and every Kubernetes."""

import functools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import free_port, make_certificates
from conftest import needs, run
from deploy.rendered import (
    CUSTOM,
    EVERYTHING,
    KUBELET,
    LATEST,
    MANY,
    NEWEST,
    OLDEST,
    PLATFORMS,
    VALUES,
    VERSIONS,
    Manifest,
    containers,
    controller_pod,
    flags,
    helm,
    node_pod,
    objects,
    pod_of,
    secret_of,
    sidecar_pod,
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
        if manifest["kind"] in CUSTOM:
            continue  # see below
        _validate(json.dumps(manifest, sort_keys=True), f"{version[0]}.{version[1]}")


@functools.cache
def _validate(manifest: str, version: str) -> None:
    """Validate an object once: most are the same in all values files."""
    validate(json.loads(manifest), version, strict=True)


@pytest.mark.parametrize("values", [LATEST, MANY], ids=["latest", "many"])
def test_pod_monitor(values: dict[str, Any]) -> None:
    """It reads all metrics that there are."""
    everything = objects(values)
    monitor = the(everything, "PodMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    ports = {
        port["name"]
        for workload in workloads(everything)
        for container in pod_of(workload)["containers"]
        for port in container.get("ports", [])
    }
    scraped = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    assert scraped == ports - {"healthz", "registration", "csi", "changed-blocks"}


@pytest.mark.parametrize("kind", ["VolumeSnapshotClass", "VolumeGroupSnapshotClass"])
def test_snapshot_classes(kind: str) -> None:
    group = "groupsnapshot" if "Group" in kind else "snapshot"
    made = the(objects(EVERYTHING), kind)
    assert made["metadata"]["annotations"] == {
        f"{group}.storage.kubernetes.io/is-default-class": "true"
    }
    assert made == {
        "apiVersion": f"{group}.storage.k8s.io/v1",
        "kind": kind,
        "metadata": made["metadata"],
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


def test_plain_manifests_name_the_secrets() -> None:
    """They have no keys in them, but wait for the Secrets that the script prints."""
    needs("openssl", met=shutil.which("openssl") is not None)
    printed = run(CHART.parents[1] / "kubernetes" / "tls-secrets.sh")
    secrets = {item["metadata"]["name"]: item for item in yaml.safe_load_all(printed)}
    documents = list(yaml.safe_load_all(manifests()["distributed.yaml"]))
    assert not any(item["kind"] == "Secret" for item in documents)
    named = {
        secret_of(pod_of(the(documents, kind)), "tls"): kind for kind in ("DaemonSet", "Deployment")
    }
    assert named.keys() == secrets.keys()
    namespace = the(documents, "Namespace")["metadata"]["name"]
    assert {item["metadata"]["namespace"] for item in secrets.values()} == {namespace}


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
        ({"pools": {"default": {"path": "/cgroup"}}, "ioLimits": {"enabled": True}}, "/cgroup"),
        ({"ioLimits": {"kubeletCgroup": "kubelet"}}, "kubeletCgroup"),
        ({"ioLimits": {"kubeletCgroup": "/kubelet/.."}}, "kubeletCgroup"),
        ({"storageClasses": [{"name": "a", "parameters": {"readIops": "100"}}]}, "ioLimits"),
        (
            {"volumeAttributesClasses": [{"name": "a", "parameters": {"writeBandwidth": "5Mi"}}]},
            "ioLimits",
        ),
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
        (
            {
                "groupSnapshots": {"enabled": True},
                "sidecars": {"snapshotter": {"enabled": False}},
            },
            "snapshotter",
        ),
        ({"tls": {"existingSecrets": {"node": "a"}}}, "controller"),
        ({"tls": {"existingSecrets": {"node": "a", "controller": "a"}}}, "key of its own"),
        ({"tls": {"existingSecrets": {"node": "a b"}}}, "node"),
        (
            {
                "tls": {
                    "existingSecrets": {"node": "a", "controller": "b"},
                    "certManager": {"enabled": True},
                }
            },
            "choose one",
        ),
        ({"tls": {"certManager": {"issuerRef": {"kind": "Issuer"}}}}, "name"),
        ({"tls": {"validityDays": 0}}, "validityDays"),
        ({"snapshotMetadata": {"tls": {"existingSecret": "a"}}}, "caCert"),
        ({"snapshotMetadata": {"tls": {"caCert": "LS0t"}}}, "existingSecret"),
        ({"snapshotMetadata": {"audience": "a,b"}}, "audience"),
        ({"csiVersion": "1.11"}, "csiVersion"),
        ({"tracing": {"endpoint": "collector:4317"}}, "endpoint"),
        ({"tracing": {"endpoint": "http://collector:4318/v1/traces"}}, "endpoint"),
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


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with certificates for the default name of the driver."""
    needs("openssl", met=shutil.which("openssl") is not None)
    path: Path = tmp_path_factory.mktemp("certificates")
    return make_certificates(path)


@pytest.mark.parametrize("name", VALUES)
def test_driver_takes_its_arguments(
    serve: Callable[..., Driver], tmp_path: Path, certificates: Path, name: str
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
        elif argument == "--tls-directory=/tls":
            options.append(f"--tls-directory={certificates / 'node'}")
        elif argument == "--listen-address=:9810":
            options.append(f"--listen-address=127.0.0.1:{free_port()}")
        elif not argument.startswith(("--endpoint=", "--node-id=", "--metrics-address=")):
            options.append(argument)
    if "--tracing" in options:
        pytest.importorskip("opentelemetry.sdk", reason="needs the extra [otel]")
    driver = serve(*pools, options=tuple(options))
    assert driver.identity.Probe(csi.ProbeRequest()).ready.value
    info = driver.identity.GetPluginInfo(csi.GetPluginInfoRequest())
    assert info.name == the(objects(VALUES[name]), "CSIDriver")["metadata"]["name"]


@pytest.mark.parametrize("name", ["default", "many", "csi-1.12"])
def test_controller_takes_its_arguments(
    serve: Callable[..., Driver], certificates: Path, name: str
) -> None:
    _, *arguments = containers(controller_pod(VALUES[name]))["pycsi"]["args"]
    assert "--tls-directory=/tls" in arguments
    options = [item for item in arguments if not item.startswith(("--endpoint", "--metrics"))]
    options[options.index("--tls-directory=/tls")] = f"--tls-directory={certificates}/controller"
    if "--tracing" in options:
        pytest.importorskip("opentelemetry.sdk", reason="needs the extra [otel]")
    driver = serve(options=tuple(options))
    info = driver.identity.GetPluginInfo(csi.GetPluginInfoRequest())
    assert info.name == "pycsi.storage"


def test_tracing() -> None:
    """Controller and nodes send their traces where the value says, and none without it."""
    endpoint = {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4317"}
    more = {"name": "OTEL_TRACES_SAMPLER", "value": "always_on"}
    values = {"tracing": {"endpoint": endpoint["value"], "extraEnv": [more]}}
    for pod in (node_pod(values), controller_pod(values)):
        driver = containers(pod)["pycsi"]
        assert "--tracing" in driver["args"]
        assert [item for item in driver["env"] if item["name"].startswith("OTEL_")] == [
            endpoint,
            more,
        ]
    for pod in (node_pod({}), controller_pod({})):
        driver = containers(pod)["pycsi"]
        assert "--tracing" not in driver["args"]
        assert "OTEL_" not in str(driver.get("env"))


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

    def dumped(place: str) -> str:
        made = objects({**VALUES[name], "kubeletDir": place})
        # New certificates, and what names their authority, differ each time.
        keyed = {"Secret", "SnapshotMetadataService"}
        text: str = yaml.safe_dump_all(item for item in made if item["kind"] not in keyed)
        return text

    moved, default = dumped(elsewhere), dumped(KUBELET)
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
    """In mode single-node one pod has it all; otherwise the sidecars are with the controller."""
    own = {"pycsi", "registrar", "livenessprobe"}
    sidecars = {"provisioner", "snapshotter", "resizer"}
    single, many = objects({"mode": "single-node"}), objects({})
    assert set(containers(pod_of(the(single, "DaemonSet")))) == own | sidecars
    assert workloads(single) == [the(single, "DaemonSet")]
    assert not any(item["kind"] in {"Service", "Secret"} for item in single)
    assert set(containers(pod_of(the(many, "Deployment")))) == {
        "pycsi",
        "livenessprobe",
        *sidecars,
    }
    assert set(containers(pod_of(the(many, "DaemonSet")))) == own


@pytest.mark.parametrize("name", [name for name in VALUES if "single" not in str(VALUES[name])])
def test_nodes_of_many(name: str) -> None:
    """Whatever is chosen, each node has three containers, none of which can call the API server."""
    pod = node_pod(VALUES[name])
    assert set(containers(pod)) == {"pycsi", "registrar", "livenessprobe"}
    assert "serviceAccountToken" not in str(pod)
    assert pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", VALUES)
def test_commands_in_the_container_of_a_node(name: str) -> None:
    """A command that is run there looks at the driver's pools, and calls the driver."""
    driver = containers(node_pod(VALUES[name]))["pycsi"]
    told = {item["name"]: item.get("value") for item in driver["env"]}
    pools = [f"--pool={pool}" for pool in told["PYCSI_POOL"].split()]
    assert {
        f"--endpoint={told['PYCSI_ENDPOINT']}",
        f"--node-id={told['PYCSI_NODE_ID']}",
        f"--driver-name={told['PYCSI_DRIVER_NAME']}",
        *pools,
    } <= flags(driver)
    assert sum(flag.startswith("--pool=") for flag in driver["args"]) == len(pools)


@pytest.mark.parametrize(
    ("mode", "told"), [("single-node", "single-node"), ("distributed", "node")]
)
def test_flags_of_a_node(mode: str, told: str) -> None:
    """It listens for the controller where there is one."""
    driver = containers(node_pod({"mode": mode}))["pycsi"]
    assert {f"--mode={told}", "--node-id=$(NODE_NAME)"} <= flags(driver)
    port = {"name": "csi", "containerPort": 9810}
    if mode == "distributed":
        assert {"--listen-address=:9810", "--tls-directory=/tls"} <= flags(driver)
        assert port in driver["ports"]
    else:
        assert not any("listen" in flag or "tls" in flag for flag in flags(driver))
        assert port not in driver["ports"]


def test_flags_of_the_controller() -> None:
    """It has no pools and no node; it finds the nodes by a name that has all their addresses."""
    made = objects({})
    told = flags(containers(pod_of(the(made, "Deployment")))["pycsi"])
    assert {"--mode=controller", "--tls-directory=/tls"} <= told
    assert not any("pool" in item or "node-id" in item for item in told)
    service = the(made, "Service", "-nodes")
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    assert f"--node-service={name}.{namespace}.svc:9810" in told
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    labels = the(made, "DaemonSet")["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert [(port["port"], port["targetPort"]) for port in service["spec"]["ports"]] == [
        (9810, "csi")
    ]


def test_sidecars_of_one_node() -> None:
    """They serve what is on their node, and elect nobody."""
    pod = containers(node_pod({"mode": "single-node"}))
    assert {
        "--node-deployment=true",
        "--strict-topology=true",
        "--immediate-topology=false",
        "--enable-capacity=true",
        "--capacity-ownerref-level=1",
        "--extra-create-metadata=true",
    } <= flags(pod["provisioner"])
    environment = {item["name"] for item in pod["provisioner"]["env"]}
    assert environment == {"NODE_NAME", "NAMESPACE", "POD_NAME"}
    # With it the sidecar would serve only snapshots that are labelled, and nobody labels them.
    assert "--node-deployment=true" not in flags(pod["snapshotter"])
    assert not any("leader-election" in flag for item in pod.values() for flag in flags(item))


def test_sidecars_of_many_nodes() -> None:
    """They serve all nodes, and of several replicas one works; the others take over."""
    pod = containers(pod_of(the(objects(MANY), "Deployment", "pycsi-controller")))
    assert {
        "--strict-topology=false",
        "--immediate-topology=false",
        "--enable-capacity=true",
        "--capacity-ownerref-level=2",
        "--extra-create-metadata=true",
    } <= flags(pod["provisioner"])
    assert "--handle-volume-inuse-error=false" in flags(pod["resizer"])
    for name in ("provisioner", "snapshotter", "resizer", "health-monitor"):
        told = flags(pod[name])
        assert {"--leader-election=true", "--leader-election-namespace=$(NAMESPACE)"} <= told
        assert not any("node-deployment" in flag for flag in told)
        assert "NAMESPACE" in {item["name"] for item in pod[name]["env"]}
        (endpoint,) = (flag for flag in told if flag.startswith("--http-endpoint=:"))
        (port,) = pod[name]["ports"]
        assert endpoint == f"--http-endpoint=:{port['containerPort']}"
        assert pod[name]["livenessProbe"]["httpGet"] == {
            "path": "/healthz/leader-election",
            "port": port["name"],
        }


@pytest.mark.parametrize("values", [LATEST, MANY], ids=["single", "many"])
def test_provisioner_is_told_no_filesystem(values: dict[str, Any]) -> None:
    """It would be taken for every claim's wish, and on another filesystem none got a directory."""
    told = flags(containers(sidecar_pod(values))["provisioner"])
    assert not any("default-fstype" in flag for flag in told)


def test_calls_of_one_node_leave_threads_for_others() -> None:
    """Each sidecar has more threads than a slow node is likely to hold, and tries again soon."""
    pod = containers(controller_pod({}))
    for name, flag, least in (
        ("provisioner", "--worker-threads", 100),
        ("provisioner", "--capacity-threads", 10),
        ("snapshotter", "--worker-threads", 50),
        ("resizer", "--workers", 50),
    ):
        told = dict(item.split("=", 1) for item in flags(pod[name]) if "=" in item)
        assert int(told[flag]) >= least
        assert told["--retry-interval-max"] == "1m"


def test_controllers_are_on_different_nodes() -> None:
    """A node that fails, or is drained, takes one of them along."""
    made = objects({})
    deployment = the(made, "Deployment")
    assert deployment["spec"]["replicas"] == 2
    rules = pod_of(deployment)["affinity"]["podAntiAffinity"]
    (rule,) = rules["preferredDuringSchedulingIgnoredDuringExecution"]
    assert rule["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert rule["podAffinityTerm"]["labelSelector"]["matchLabels"].items() <= labels.items()
    budget = the(made, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == deployment["spec"]["selector"]
    assert controller_pod(MANY)["affinity"] == {"nodeAffinity": {}}


# Versions, and what is optional


@pytest.mark.parametrize("enabled", [True, False])
def test_group_snapshots(enabled: bool) -> None:
    """Both sides are told, also of no groups: upstream's default has changed."""
    gate = f"--feature-gates=CSIVolumeGroupSnapshot={'true' if enabled else 'false'}"
    for everything in (EVERYTHING, MANY):
        values = {**everything, "groupSnapshots": {"enabled": enabled}}
        made = objects(values)
        assert gate in flags(containers(sidecar_pod(values))["snapshotter"])
        controller = the(made, "Deployment", "snapshot-controller")
        assert gate in flags(containers(pod_of(controller))["snapshot-controller"])
        assert any(item["kind"] == "VolumeGroupSnapshotClass" for item in made) == enabled


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


@pytest.mark.parametrize(
    ("mode", "kind"), [("distributed", "Deployment"), ("single-node", "DaemonSet")]
)
def test_health_monitor(mode: str, kind: str) -> None:
    """It is where the other sidecars are, and nowhere unless it is wanted."""
    assert not any("health-monitor" in str(item) for item in objects({"mode": mode}))
    made = objects({"mode": mode, "sidecars": {"healthMonitor": {"enabled": True}}})
    holders = [
        workload["kind"]
        for workload in workloads(made)
        if "health-monitor" in containers(pod_of(workload))
    ]
    assert holders == [kind]


@pytest.mark.parametrize("mode", ["distributed", "single-node"])
def test_csi_version(mode: str) -> None:
    """The driver's own default is not told to it."""
    for version, told in (("1.13", False), ("1.12", True)):
        for workload in workloads(objects({"mode": mode, "csiVersion": version})):
            driver = flags(containers(pod_of(workload))["pycsi"])
            assert (f"--csi-version={version}" in driver) == told
            assert any("csi-version" in flag for flag in driver) == told


def test_snapshot_controller() -> None:
    """It is there only if wanted, and like any other: nodes are no concern of its."""
    assert not any("snapshot-controller" in str(item) for item in objects({}))
    controller = the(
        objects({"snapshotController": {"enabled": True}}), "Deployment", "snapshot-controller"
    )
    told = flags(containers(pod_of(controller))["snapshot-controller"])
    assert "--leader-election=true" in told
    assert not any("distributed" in flag for flag in told)


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


@pytest.mark.parametrize("mode", ["single-node", "distributed"])
def test_attributes_classes(mode: str) -> None:
    """They are where the cluster has them."""

    def names(version: tuple[int, int]) -> set[str]:
        made = objects({"mode": mode}, version)
        return {v["metadata"]["name"] for v in made if v["kind"] == "VolumeAttributesClass"}

    assert names((1, 34)) == {"pycsi-delete", "pycsi-retain"}
    assert names((1, 33)) == set()


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
        if values is LATEST or values is MANY:
            assert chosen.items() <= spec.items()
        else:
            assert spec["seLinuxMount"] is False
            assert spec.keys() & chosen.keys() == {"seLinuxMount"}


def test_names() -> None:
    """Names of a release's objects, which an upgrade must find again."""
    assert sorted({f"{i['kind']}/{i['metadata']['name']}" for i in objects({})}) == [
        "CSIDriver/pycsi.storage",
        "ClusterRole/pycsi-controller",
        "ClusterRoleBinding/pycsi-controller",
        "DaemonSet/pycsi-node",
        "Deployment/pycsi-controller",
        "Pod/pycsi-test",
        "PodDisruptionBudget/pycsi-controller",
        "Role/pycsi-controller",
        "RoleBinding/pycsi-controller",
        "Secret/pycsi-controller-tls",
        "Secret/pycsi-node-tls",
        "Service/pycsi-nodes",
        "ServiceAccount/pycsi-controller",
        "ServiceAccount/pycsi-node",
        "StorageClass/pycsi",
        "VolumeAttributesClass/pycsi-delete",
        "VolumeAttributesClass/pycsi-retain",
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
    "csi-snapshot-metadata": "v1.1.0",
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
        {**MANY, "openshift": {}, "selinux": {}},
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


@pytest.mark.parametrize("mode", ["distributed", "single-node"])
def test_limits_on_io(mode: str) -> None:
    """The driver, and nothing else, gets the host's cgroups; and only if limits are wanted."""
    assert "cgroup" not in str(objects({"mode": mode}))
    for name, root in (("", "/cgroup"), ("/a.slice/a-b.slice", "/cgroup/a.slice/a-b.slice")):
        limits = {"enabled": True, "kubeletCgroup": name}
        parameters = {"readBandwidth": "50Mi", "writeIops": "none"}
        classes = [{"name": "slow", "parameters": parameters}]
        pod = node_pod({"mode": mode, "ioLimits": limits, "volumeAttributesClasses": classes})
        assert {"name": "PYCSI_CGROUP_ROOT", "value": root} in containers(pod)["pycsi"]["env"]
        place = {"path": "/sys/fs/cgroup", "type": "Directory"}
        assert {"name": "cgroup", "hostPath": place} in pod["volumes"]
        holders = {
            name: [mount for mount in container["volumeMounts"] if mount["name"] == "cgroup"]
            for name, container in containers(pod).items()
        }
        assert holders.pop("pycsi") == [{"name": "cgroup", "mountPath": "/cgroup"}]
        assert not any(holders.values())


def test_tokens() -> None:
    """Only a container that calls the API server can read a token."""
    for values in ({}, LATEST, MANY):
        for workload in workloads(objects(values)):
            pod = pod_of(workload)
            assert pod["automountServiceAccountToken"] is False
            holders = {
                container["name"]
                for container in pod["containers"]
                if any(mount["name"] == "token" for mount in container.get("volumeMounts", []))
            }
            clients = {"provisioner", "snapshotter", "resizer", "snapshot-controller"}
            clients |= {"health-monitor", "snapshot-metadata"}
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
