"""What the service accounts may do: what the sidecars call at these versions, and nothing else.

The calls were read from the sidecars' sources and seen in the API server's audit log. `READ` is
what an informer does; the others are single calls.
"""

from typing import Any

import pytest
from deploy.rendered import EVERYTHING, MANY, Manifest, objects, the

READ = frozenset({"get", "list", "watch"})
SNAPSHOT = "snapshot.storage.k8s.io"
GROUP = "groupsnapshot.storage.k8s.io"

Calls = dict[tuple[str, str], frozenset[str]]


def calls(*verbs: str) -> frozenset[str]:
    return frozenset(verbs)


# An event recorder creates events, and patches the count of repeated ones.
EVENTS: Calls = {("", "events"): calls("create", "patch")}
# A candidate creates, reads and updates the lease.
ELECTION: Calls = {("coordination.k8s.io", "leases"): calls("get", "create", "update")}

PROVISIONER: Calls = {
    **EVENTS,
    # Saves a volume, takes its finalizer off, and deletes it.
    ("", "persistentvolumes"): READ | calls("create", "patch", "delete"),
    # Finalizers of sources of clones, and the chosen node when a volume must go elsewhere.
    ("", "persistentvolumeclaims"): READ | calls("update"),
    ("storage.k8s.io", "storageclasses"): READ,
    ("storage.k8s.io", "volumeattributesclasses"): calls("get"),
    # Finalizers of snapshots that are being restored.
    (SNAPSHOT, "volumesnapshots"): READ | calls("update"),
    (SNAPSHOT, "volumesnapshotcontents"): calls("get", "list"),
}
# Which nodes have the driver, and their topology; one that is on its node only asks the driver.
PROVISIONER_OF_ALL_NODES: Calls = {
    ("", "nodes"): READ,
    ("storage.k8s.io", "csinodes"): READ,
}
PROVISIONER_HERE: Calls = {
    ("storage.k8s.io", "csistoragecapacities"): READ | calls("create", "update", "delete"),
    # Whose objects the capacities are.
    ("", "pods"): calls("get"),
}
# The way from the pod to its Deployment.
REPLICA_SETS: Calls = {("apps", "replicasets"): calls("get")}
SNAPSHOTTER: Calls = {
    **EVENTS,
    (SNAPSHOT, "volumesnapshotclasses"): READ,
    (SNAPSHOT, "volumesnapshotcontents"): READ | calls("patch"),
    (SNAPSHOT, "volumesnapshotcontents/status"): calls("update", "patch"),
}
GROUP_SNAPSHOTTER: Calls = {
    (GROUP, "volumegroupsnapshotclasses"): READ,
    (GROUP, "volumegroupsnapshotcontents"): READ | calls("patch"),
    (GROUP, "volumegroupsnapshotcontents/status"): calls("update", "patch"),
}
RESIZER: Calls = {
    **EVENTS,
    ("", "persistentvolumes"): READ | calls("patch"),
    ("", "persistentvolumeclaims"): READ,
    ("", "persistentvolumeclaims/status"): calls("patch"),
    ("storage.k8s.io", "volumeattributesclasses"): READ,
}
# Reads which claims the volumes belong to, and writes their faults into those; an event tells of
# faults of a kind that it does not know.
HEALTH_MONITOR: Calls = {
    **EVENTS,
    ("", "persistentvolumes"): READ,
    ("", "persistentvolumeclaims"): READ,
    ("", "persistentvolumeclaims/status"): calls("patch"),
}
# Whether the token is one, whether its account may read the snapshot, and which snapshot it is;
# the class, for the secrets that it may name, of which there are none here.
SNAPSHOT_METADATA: Calls = {
    ("authentication.k8s.io", "tokenreviews"): calls("create"),
    ("authorization.k8s.io", "subjectaccessreviews"): calls("create"),
    (SNAPSHOT, "volumesnapshots"): calls("get"),
    (SNAPSHOT, "volumesnapshotcontents"): calls("get"),
    (SNAPSHOT, "volumesnapshotclasses"): calls("get", "list"),
}
SNAPSHOT_CONTROLLER: Calls = {
    **EVENTS,
    ("", "persistentvolumes"): READ,
    # Finalizers of volumes of which a snapshot is being taken.
    ("", "persistentvolumeclaims"): READ | calls("update"),
    (SNAPSHOT, "volumesnapshotclasses"): READ,
    (SNAPSHOT, "volumesnapshotcontents"): READ | calls("create", "patch", "delete"),
    (SNAPSHOT, "volumesnapshots"): READ | calls("update", "patch"),
    (SNAPSHOT, "volumesnapshots/status"): calls("update"),
}
GROUP_SNAPSHOT_CONTROLLER: Calls = {
    # The members of a group.
    (SNAPSHOT, "volumesnapshots"): calls("create", "delete"),
    (SNAPSHOT, "volumesnapshots/status"): calls("patch"),
    (SNAPSHOT, "volumesnapshotcontents/status"): calls("patch"),
    (GROUP, "volumegroupsnapshotclasses"): READ,
    (GROUP, "volumegroupsnapshotcontents"): READ | calls("create", "patch", "delete"),
    (GROUP, "volumegroupsnapshotcontents/status"): calls("patch"),
    (GROUP, "volumegroupsnapshots"): READ | calls("update", "patch"),
    (GROUP, "volumegroupsnapshots/status"): calls("update", "patch"),
}

CASES: dict[str, tuple[dict[str, Any], str, tuple[Calls, ...], tuple[Calls, ...]]] = {
    "controller": (
        {},
        "-controller",
        (PROVISIONER, PROVISIONER_OF_ALL_NODES, SNAPSHOTTER, RESIZER),
        (PROVISIONER_HERE, REPLICA_SETS, ELECTION),
    ),
    "controller with everything": (
        MANY,
        "-controller",
        (
            PROVISIONER,
            PROVISIONER_OF_ALL_NODES,
            SNAPSHOTTER,
            GROUP_SNAPSHOTTER,
            RESIZER,
            HEALTH_MONITOR,
            SNAPSHOT_METADATA,
        ),
        (PROVISIONER_HERE, REPLICA_SETS, ELECTION),
    ),
    "single node": (
        {"mode": "single-node"},
        "-node",
        (PROVISIONER, SNAPSHOTTER, RESIZER),
        (PROVISIONER_HERE,),
    ),
    "single node with groups": (
        EVERYTHING,
        "-node",
        (PROVISIONER, SNAPSHOTTER, GROUP_SNAPSHOTTER, RESIZER, SNAPSHOT_METADATA),
        (PROVISIONER_HERE,),
    ),
    "without snapshots and expansion": (
        {"sidecars": {"snapshotter": {"enabled": False}, "resizer": {"enabled": False}}},
        "-controller",
        (PROVISIONER, PROVISIONER_OF_ALL_NODES),
        (PROVISIONER_HERE, REPLICA_SETS, ELECTION),
    ),
    "snapshot controller": (
        {"mode": "single-node", "snapshotController": {"enabled": True}},
        "-snapshot-controller",
        (SNAPSHOT_CONTROLLER,),
        (ELECTION,),
    ),
    "snapshot controller with groups": (
        EVERYTHING,
        "-snapshot-controller",
        (SNAPSHOT_CONTROLLER, GROUP_SNAPSHOT_CONTROLLER),
        (ELECTION,),
    ),
}


def together(tables: tuple[Calls, ...]) -> Calls:
    merged: Calls = {}
    for table in tables:
        for resource, verbs in table.items():
            merged[resource] = merged.get(resource, frozenset()) | verbs
    return merged


def granted(role: Manifest) -> Calls:
    return together(
        tuple(
            {(group, resource): frozenset(rule["verbs"])}
            for rule in role["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
        )
    )


@pytest.mark.parametrize("case", CASES)
def test_exactly_what_is_called(case: str) -> None:
    values, name, everywhere, here = CASES[case]
    made = objects(values)
    assert granted(the(made, "ClusterRole", f"pycsi{name}")) == together(everywhere)
    assert granted(the(made, "Role", f"pycsi{name}")) == together(here)


@pytest.mark.parametrize("case", CASES)
def test_bindings(case: str) -> None:
    """Each role is bound to the account of its component's pods, which have no other role."""
    values, name, *_ = CASES[case]
    made = objects(values)
    account = {"kind": "ServiceAccount", "name": f"pycsi{name}", "namespace": "pycsi-system"}
    roles = {
        (item["kind"], item["roleRef"]["kind"], item["roleRef"]["name"])
        for item in made
        if item["kind"].endswith("Binding") and account in item["subjects"]
    }
    expected = {
        ("ClusterRoleBinding", "ClusterRole", f"pycsi{name}"),
        ("RoleBinding", "Role", f"pycsi{name}"),
    }
    if values.get("openshift") and name == "-node":
        expected.add(("RoleBinding", "ClusterRole", "system:openshift:scc:privileged"))
    assert roles == expected


@pytest.mark.parametrize("values", [{}, MANY], ids=["default", "everything"])
def test_nodes_of_many_may_do_nothing(values: dict[str, Any]) -> None:
    """There is no role of the nodes' account, but what OpenShift needs to admit the pods."""
    made = objects(values)
    for item in made:
        if item["kind"].endswith("Role"):
            assert not item["metadata"]["name"].endswith("-node")
        if item["kind"].endswith("Binding") and any(
            subject["name"] == "pycsi-node" for subject in item["subjects"]
        ):
            assert item["roleRef"]["name"] == "system:openshift:scc:privileged"


def test_client_of_changed_blocks() -> None:
    """Backup software may find the service, and read the snapshots that it asks about."""
    assert granted(the(objects(MANY), "ClusterRole", "-snapshot-metadata-client")) == {
        (SNAPSHOT, "volumesnapshots"): READ,
        (SNAPSHOT, "volumesnapshotcontents"): READ,
        ("cbt.storage.k8s.io", "snapshotmetadataservices"): calls("get", "list"),
    }


def test_nothing_of_everything() -> None:
    """No rule has a wildcard, secrets, or the right to escalate."""
    for values in ({}, EVERYTHING, MANY):
        for item in objects(values):
            for rule in item.get("rules", []):
                assert "*" not in str(rule)
                assert "secrets" not in rule["resources"]
                assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])
