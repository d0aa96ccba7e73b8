#!/usr/bin/env bash
# The steps of `make kind`: kind.sh cluster|load|snapshots|install|demo|delete
#
# Needs kind, kubectl, helm, and docker or podman. Variables: MODE (single-node, or distributed), CLUSTER (pycsi), IMAGE and
# ARCHIVE (what `make image-archive` has made), CONTAINER_TOOL (docker, or podman), NODE_IMAGE (kind's own: that of another
# version of Kubernetes, such as kindest/node:v1.36.1).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

MODE=${MODE:-single-node}
CLUSTER=${CLUSTER:-pycsi}
CONTAINER_TOOL=${CONTAINER_TOOL:-docker}
ARCHIVE=${ARCHIVE:-build/pycsi.tar}
IMAGE=${IMAGE:-}
NODE_IMAGE=${NODE_IMAGE:-}
NAMESPACE=pycsi-system
SNAPSHOTTER=v8.7.0
LOOPS=256

say() { printf '\n==> %s\n' "$*"; }

need() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || { echo "$program is not on PATH: install it first"; exit 1; }
    done
}

# Of this cluster, whatever the user's current context is.
use_cluster() {
    need kind kubectl
    KUBECONFIG=$(mktemp)
    export KUBECONFIG
    trap 'rm -f "$KUBECONFIG"' EXIT
    kind get kubeconfig --name "$CLUSTER" >"$KUBECONFIG"
}

step_cluster() {
    need kind "$CONTAINER_TOOL"
    if kind get clusters 2>/dev/null | grep -qx "$CLUSTER"; then
        say "kind cluster $CLUSTER is there already"
    else
        say "creating kind cluster $CLUSTER ($MODE${NODE_IMAGE:+, $NODE_IMAGE})"
        kind create cluster --name "$CLUSTER" --config "deploy/kind/$MODE.yaml" --wait 180s \
            ${NODE_IMAGE:+--image "$NODE_IMAGE"}
    fi
    # A node is a container, and its /dev a copy made when it started: nobody adds the nodes of loop devices that the
    # kernel makes later. The driver adds its own, but the kubelet needs one more for each raw block volume.
    say "making $LOOPS loop device nodes in each kind node"
    local node
    for node in $(kind get nodes --name "$CLUSTER"); do
        "$CONTAINER_TOOL" exec "$node" sh -ec "
            [ -c /dev/loop-control ] || mknod -m 660 /dev/loop-control c 10 237
            for i in \$(seq 0 $((LOOPS - 1))); do [ -b /dev/loop\$i ] || mknod -m 660 /dev/loop\$i b 7 \$i; done"
    done
}

step_load() {
    need kind
    say "loading $ARCHIVE into the nodes"
    kind load image-archive "$ARCHIVE" --name "$CLUSTER"
}

step_snapshots() {
    use_cluster
    say "installing the snapshot CRDs $SNAPSHOTTER; the snapshot-controller comes with the chart"
    kubectl apply -k "https://github.com/kubernetes-csi/external-snapshotter/client/config/crd?ref=$SNAPSHOTTER"
}

step_install() {
    need helm
    use_cluster
    say "installing the chart, mode $MODE"
    local image=() archive
    [ -z "$IMAGE" ] || image=(--set "image.repository=${IMAGE%:*},image.tag=${IMAGE##*:}")
    # Another image under the same name starts the pods again.
    if [ -e "$ARCHIVE" ]; then
        archive=$(sha256sum "$ARCHIVE" | cut -c 1-16)
        image+=(--set-string "node.podAnnotations.archive=$archive,controller.podAnnotations.archive=$archive")
    fi
    helm upgrade --install pycsi deploy/helm/pycsi --namespace "$NAMESPACE" --create-namespace \
        --values deploy/helm/pycsi/values-kind.yaml --set "mode=$MODE" "${image[@]}" --wait --timeout 5m
    kubectl label namespace "$NAMESPACE" --overwrite pod-security.kubernetes.io/enforce=privileged
    kubectl --namespace "$NAMESPACE" get pods -o wide
}

step_demo() {
    use_cluster
    say "running the demos"
    deploy/demos/run.sh
}

step_delete() {
    need kind
    say "deleting kind cluster $CLUSTER, with its volumes"
    kind delete cluster --name "$CLUSTER"
}

case ${1:-} in
    cluster | load | snapshots | install | demo | delete) "step_$1" ;;
    *)
        sed -n '2,6p' "${BASH_SOURCE[0]}"
        exit 2
        ;;
esac
