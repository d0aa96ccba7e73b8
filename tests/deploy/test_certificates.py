"""Who has which key in the chart, and whom it is for."""

import base64
import shutil
from pathlib import Path

import cluster
import pytest
from cluster import NodeDriver
from conftest import needs, run
from deploy.rendered import (
    VALUES,
    Manifest,
    containers,
    flags,
    objects,
    pod_of,
    secret_of,
    sidecar_pod,
    the,
    workloads,
)

from pycsi.proto import csi_pb2 as csi

# Controller and nodes


def secret_files(made: list[Manifest], name: str, folder: Path) -> Path:
    """Write a Secret's content to files, and return their directory."""
    place = folder / name
    place.mkdir()
    for file, content in the(made, "Secret", name)["data"].items():
        (place / file).write_bytes(base64.b64decode(content))
    return place


def test_made_certificates(tmp_path: Path) -> None:
    """Each role's holds for its own name only, and both are of one authority."""
    needs("openssl", met=shutil.which("openssl") is not None)
    made = objects({})
    authorities = set()
    for role, other in (("controller", "node"), ("node", "controller")):
        folder = secret_files(made, f"pycsi-{role}-tls", tmp_path)
        authorities.add((folder / "ca.crt").read_text())
        certificate = folder / "tls.crt"
        verify: list[str | Path] = ["openssl", "verify", "-CAfile", folder / "ca.crt"]
        purpose = "sslclient" if role == "controller" else "sslserver"
        assert "OK" in run(*verify, "-purpose", purpose, certificate)
        check: list[str | Path] = ["openssl", "x509", "-noout", "-in", certificate, "-checkhost"]
        assert "does match" in run(*check, f"{role}.pycsi.storage")
        assert "does NOT match" in run(*check, f"{other}.pycsi.storage")
        of_key = run("openssl", "pkey", "-pubout", "-in", folder / "tls.key")
        assert run("openssl", "x509", "-pubkey", "-noout", "-in", certificate) == of_key
    assert len(authorities) == 1


def test_made_certificates_work(pool: Path, tmp_path: Path) -> None:
    """With them the controller reaches a node."""
    made = objects({})
    for role in ("controller", "node"):
        secret_files(made, f"pycsi-{role}-tls", tmp_path).rename(tmp_path / role)
    with (
        NodeDriver("node-1", tmp_path / "driver", [f"default={pool}"], tmp_path) as node,
        cluster.controller(tmp_path, tmp_path, {"node-1": node}) as driver,
    ):
        capacity = driver.controller.GetCapacity(csi.GetCapacityRequest())
    assert capacity.available_capacity > 0


@pytest.mark.parametrize("name", VALUES)
def test_who_has_which_key(name: str) -> None:
    """A node never has the controller's, and only the drivers and the metadata service have any."""
    made = objects(VALUES[name])
    holders = {
        (workload["metadata"]["labels"]["app.kubernetes.io/component"], container["name"]): (
            secret_of(pod_of(workload), mount["name"])
        )
        for workload in workloads(made)
        for container in pod_of(workload)["containers"]
        for mount in container.get("volumeMounts", [])
        if mount["name"].endswith("tls")
    }
    values = VALUES[name]
    own = name == "own-secrets"
    expected = {}
    place = "node"
    if values.get("mode") != "single-node":
        place = "controller"
        expected["node", "pycsi"] = "b" if own else "pycsi-node-tls"
        expected["controller", "pycsi"] = "a" if own else "pycsi-controller-tls"
    if values.get("snapshotMetadata"):
        expected[place, "snapshot-metadata"] = "c" if own else "pycsi-snapshot-metadata-tls"
    assert holders == expected
    made_here = {item["metadata"]["name"] for item in made if item["kind"] == "Secret"}
    if "tls" not in values:
        assert made_here == set(expected.values())
    else:
        assert not made_here & {"pycsi-node-tls", "pycsi-controller-tls", "a", "b", "c"}


@pytest.mark.parametrize("name", ["cert-manager", "own-issuer"])
def test_cert_manager(name: str) -> None:
    """Both certificates are for one role and one name, of an authority that signs nothing else."""
    made = objects(VALUES[name])
    certificates = [item for item in made if item["kind"] == "Certificate"]
    issuers = {item["metadata"]["name"]: item["spec"] for item in made if item["kind"] == "Issuer"}
    leaves = {
        item["metadata"]["name"]: item["spec"] for item in certificates if not_authority(item)
    }
    assert {
        name: (spec["dnsNames"], spec["usages"], spec["secretName"])
        for name, spec in leaves.items()
    } == {
        "pycsi-controller": (
            ["controller.pycsi.storage"],
            ["digital signature", "client auth"],
            "pycsi-controller-tls",
        ),
        "pycsi-node": (
            ["node.pycsi.storage"],
            ["digital signature", "server auth"],
            "pycsi-node-tls",
        ),
    }
    if name == "own-issuer":
        issuer = {"name": "company", "kind": "ClusterIssuer"}
        assert not issuers
        assert len(certificates) == len(leaves)
    else:
        issuer = {"name": "pycsi-ca", "kind": "Issuer"}
        authority = the(made, "Certificate", "-ca")["spec"]
        assert issuers["pycsi-ca"] == {"ca": {"secretName": authority["secretName"]}}
        assert issuers[authority["issuerRef"]["name"]] == {"selfSigned": {}}
    assert all(spec["issuerRef"] == issuer for spec in leaves.values())


def not_authority(certificate: Manifest) -> bool:
    return not certificate["spec"].get("isCA")


# Changed blocks


@pytest.mark.parametrize("mode", ["single-node", "distributed"])
def test_snapshot_metadata(mode: str, tmp_path: Path) -> None:
    """Clients find the sidecar, know whom to trust, and which token it takes."""
    needs("openssl", met=shutil.which("openssl") is not None)
    values = {
        "mode": mode,
        "driverName": "local.example.com",
        "snapshotMetadata": {"enabled": True},
    }
    made = objects(values)
    pod = sidecar_pod(values)
    sidecar = containers(pod)["snapshot-metadata"]
    told = the(made, "SnapshotMetadataService")
    assert told["apiVersion"] == "cbt.storage.k8s.io/v1beta1"
    assert told["metadata"]["name"] == "local.example.com"
    assert f"--audience={told['spec']['audience']}" in flags(sidecar)

    host, port = told["spec"]["address"].split(":")
    service = the(made, "Service", "-snapshot-metadata")
    assert host == f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    (opened,) = service["spec"]["ports"]
    assert opened["port"] == int(port)
    listening = {item["name"]: item["containerPort"] for item in sidecar["ports"]}
    assert f"--port={listening[opened['targetPort']]}" in flags(sidecar)
    (workload,) = (item for item in workloads(made) if pod_of(item) == pod)
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()

    folder = secret_files(made, secret_of(pod, "snapshot-metadata-tls"), tmp_path)
    assert (folder / "ca.crt").read_bytes() == base64.b64decode(told["spec"]["caCert"])
    verify: list[str | Path] = [
        "openssl",
        "verify",
        "-CAfile",
        folder / "ca.crt",
        "-purpose",
        "sslserver",
    ]
    assert "OK" in run(*verify, "-verify_hostname", host, folder / "tls.crt")
    assert {"name": "snapshot-metadata-tls", "mountPath": "/tls", "readOnly": True} in sidecar[
        "volumeMounts"
    ]
    assert {"--tls-cert=/tls/tls.crt", "--tls-key=/tls/tls.key"} <= flags(sidecar)


def test_snapshot_metadata_is_optional() -> None:
    for mode in ("single-node", "distributed"):
        assert "snapshot-metadata" not in str(objects({"mode": mode}))
    own = the(objects(VALUES["own-secrets"]), "SnapshotMetadataService")
    assert own["spec"]["caCert"] == "LS0t"
