#!/usr/bin/env bash
# Show on a cluster what the driver does, and prove each claim: run.sh [DEMO...], e.g. run.sh 01 06; all in their order.
#
# Needs kubectl, and the driver with a StorageClass. Prints a line per demo and ends with status 1 if one failed. A demo whose
# feature the cluster lacks is skipped, with the reason. Everything is made in one namespace, which is deleted at the end.
#
# Variables: DRIVER (pycsi.storage), STORAGE_CLASS (pycsi, or else the first of the driver's; volumes of 64 MiB must be
# possible), SNAPSHOT_CLASS and GROUP_SNAPSHOT_CLASS (likewise), NAMESPACE (pycsi-demo), IMAGE (busybox; any with a shell and dd), TIMEOUT (seconds for
# each thing to happen, 300), KEEP (1: leave everything).
set -u
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1

DRIVER=${DRIVER:-pycsi.storage}
NAMESPACE=${NAMESPACE:-pycsi-demo}
IMAGE=${IMAGE:-busybox}
TIMEOUT=${TIMEOUT:-300}
KEEP=${KEEP:-}
SKIPPED=77

k() { kubectl --namespace "$NAMESPACE" "$@"; }

# manifest NAME: a manifest of this directory, with this cluster's names
manifest() {
    sed -e "s|storageClassName: pycsi\$|storageClassName: $STORAGE_CLASS|" \
        -e "s|volumeSnapshotClassName: pycsi\$|volumeSnapshotClassName: ${SNAPSHOT_CLASS:-none}|" \
        -e "s|volumeGroupSnapshotClassName: pycsi\$|volumeGroupSnapshotClassName: ${GROUP_SNAPSHOT_CLASS:-none}|" \
        -e "s|pycsi-demo-image\$|$NAMESPACE-image|" -e "s|provisioner: pycsi.storage|provisioner: $DRIVER|" \
        -e "s|driver: pycsi.storage|driver: $DRIVER|" -e "s|image: busybox|image: $IMAGE|" "$1.yaml"
}

# apply NAME [LABEL]: a manifest, or what has this label in it
apply() { manifest "$1" | k apply ${2:+-l "pycsi-demo=$2"} -f -; }

# eventually WHAT WANTED COMMAND...: wait until the command prints a text that matches the pattern WANTED
eventually() {
    local what=$1 wanted=$2 found='' end=$((SECONDS + TIMEOUT))
    shift 2
    # shellcheck disable=SC2053  # WANTED is a pattern
    until found=$("$@" 2>&1) && [[ $found == @($wanted) ]]; do
        if ((SECONDS >= end)); then
            echo "$what: wanted '$wanted' within $TIMEOUT s, found '$found'"
            return 1
        fi
        sleep 1
    done
}

# same WHAT WANTED FOUND
same() { [[ $2 == "$3" ]] || { echo "$1: wanted '$2', found '$3'"; return 1; }; }

ready() {
    eventually "pod $1 ready" True k get pod "$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
}

# in_pod POD SCRIPT: the script's output
in_pod() { k exec "$1" -- sh -ec "$2"; }

# write POD TEXT: into a file, and through the page cache
write() { in_pod "$1" "echo '$2' > /data/file; sync"; }

# refuses POD MIB: writing so much is refused, and room is made again
refuses() {
    local said
    said=$(in_pod "$1" "dd if=/dev/zero of=/data/fill bs=1M count=$2 2>&1; sync" 2>&1) || true
    [[ $said == *"No space left"* || $said == *"uota exceeded"* ]] ||
        { echo "writing $2 MiB to a smaller volume was not refused: $said"; return 1; }
    in_pod "$1" 'rm /data/fill'
}

gone() { eventually "$1 gone" '' k get "$@" --ignore-not-found -o name; }

proved() { echo "PROVED $*"; }

skip() {
    echo "SKIPPED $*"
    exit "$SKIPPED"
}

snapshot_ready() { eventually "snapshot $1 ready" true k get volumesnapshot "$1" -o 'jsonpath={.status.readyToUse}'; }

node_of() { k get pod "$1" -o 'jsonpath={.spec.nodeName}'; }

# driver_on NODE: the namespace and the name of the driver's pod there, by the labels of the chart
driver_on() {
    kubectl get pods --all-namespaces -l app.kubernetes.io/part-of=pycsi,app.kubernetes.io/component=node \
        --field-selector "spec.nodeName=$1" -o 'jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name}{"\n"}{end}' | head -n 1
}

# on_node NODE COMMAND...: run pycsi COMMAND in the driver's container there, with the driver's pools
on_node() {
    local namespace pod pools
    read -r namespace pod <<<"$(driver_on "$1")"
    shift
    pools=$(kubectl -n "$namespace" get pod "$pod" -o 'jsonpath={range .spec.containers[?(@.name=="pycsi")].args[*]}{@}{"\n"}{end}' |
        grep -e '^--pool=')
    # shellcheck disable=SC2086  # a list of options
    kubectl -n "$namespace" exec "$pod" -c pycsi -- pycsi "$@" $pools
}

need_snapshots() {
    [ -n "$SNAPSHOT_CLASS" ] || skip "no VolumeSnapshotClass of $DRIVER: install the snapshot CRDs and controller, then one"
}

demo_01_pvc_pod() {
    apply 01-pvc-pod
    ready writer
    write writer first
    same content first "$(in_pod writer 'cat /data/file')"
    same phase Bound "$(k get pvc data -o 'jsonpath={.status.phase}')"
    refuses writer 96
    proved "a pod that is not root wrote to its volume and read it; more than the 64 MiB asked for were refused"
}

demo_02_snapshot() {
    need_snapshots
    need 01
    write writer before
    apply 02-snapshot
    snapshot_ready data-1
    write writer after
    proved "a snapshot was taken of the volume in use"
}

demo_03_restore() {
    need 02
    apply 03-restore
    ready restored
    same "restored content" before "$(in_pod restored 'cat /data/file')"
    write restored changed
    same "content of the source" after "$(in_pod writer 'cat /data/file')"
    proved "a new volume has what was written before the snapshot, and nothing of what came after"
}

demo_04_clone() {
    need 01
    write writer after
    apply 04-clone
    ready clone
    same "cloned content" after "$(in_pod clone 'cat /data/file')"
    write clone changed
    same "content of the source" after "$(in_pod writer 'cat /data/file')"
    proved "a new volume has what the other held, and each goes its own way"
}

demo_05_expand() {
    local grown='while in use'
    same true true "$(kubectl get storageclass "$STORAGE_CLASS" -o 'jsonpath={.allowVolumeExpansion}')" >/dev/null ||
        skip "StorageClass $STORAGE_CLASS does not allow expansion"
    need 01
    write writer kept
    refuses writer 96
    k patch pvc data --type merge --patch "$(cat 05-expand.yaml)"
    k annotate pod writer "look=now" # the kubelet looks after each pod every minute or so, and when it has changed
    eventually "growth" 'grown|refused' growth
    if [ "$(growth)" = refused ]; then
        # Growing a mounted ext4 needs CAP_SYS_RESOURCE, which some hosts keep even from privileged containers.
        grown='when the pod was started again (this host lets nobody grow a mounted ext4)'
        k delete pod writer
        manifest 01-pvc-pod | sed '1,/^---$/d' | k apply -f -
        ready writer
        eventually "growth" grown growth
    fi
    in_pod writer 'dd if=/dev/zero of=/data/fill bs=1M count=96 2>/dev/null; sync; rm /data/fill'
    same content kept "$(in_pod writer 'cat /data/file')"
    proved "64 MiB grew to 160 MiB $grown, and what was refused before could be written"
}

# How the claim of 01 grows: empty as long as it is under way.
growth() {
    if [ "$(k get pvc data -o 'jsonpath={.status.capacity.storage}')" = 160Mi ]; then
        echo grown
    elif [ "$(k get pvc data -o 'jsonpath={.status.conditions[?(@.type=="NodeResizeError")].status}')" = True ]; then
        echo refused
    fi
}

demo_06_block() {
    apply 06-block
    ready device
    in_pod device 'dd if=/dev/urandom of=/tmp/pattern bs=1M count=4 2>/dev/null
                   dd if=/tmp/pattern of=/dev/xvda bs=1M seek=8 conv=fsync 2>/dev/null
                   dd if=/dev/xvda bs=1M skip=8 count=4 2>/dev/null | cmp - /tmp/pattern'
    same size $((16 << 20)) "$(in_pod device 'dd if=/dev/xvda bs=1M 2>/dev/null | wc -c')"
    proved "a raw device of 16 MiB gave back the blocks that were written to it"
}

demo_07_inline() {
    [[ $(kubectl get csidriver "$DRIVER" -o 'jsonpath={.spec.volumeLifecycleModes}') == *Ephemeral* ]] ||
        skip "CSIDriver $DRIVER has no Ephemeral volumes"
    apply 07-inline
    ready inline
    write inline first
    refuses inline 48
    k delete pod inline
    proved "a volume came with the pod, kept its size of 32 MiB, and went with it"
}

demo_08_generic_ephemeral() {
    apply 08-generic-ephemeral
    ready ephemeral
    write ephemeral first
    same phase Bound "$(k get pvc ephemeral-data -o 'jsonpath={.status.phase}')"
    k delete pod ephemeral
    gone pvc ephemeral-data
    proved "a claim came with the pod and went with it"
}

demo_09_rwop() {
    apply 09-rwop
    eventually "one pod waits for the other" '*ReadWriteOncePod*' waiting first second
    local user=first
    [[ $(k get pod first -o 'jsonpath={.status.phase}') == Pending && $(k get pod second -o 'jsonpath={.status.phase}') != Pending ]] &&
        user=second
    ready "$user"
    k delete pod "$user"
    if [ $user = first ]; then ready second; else ready first; fi
    proved "the second pod waited until the first one was gone"
}

# waiting POD...: why they cannot be scheduled
waiting() { k get pods "$@" -o 'jsonpath={.items[*].status.conditions[?(@.type=="PodScheduled")].message}'; }

demo_10_capacity() {
    same true true "$(kubectl get csidriver "$DRIVER" -o 'jsonpath={.spec.storageCapacity}')" >/dev/null ||
        skip "CSIDriver $DRIVER does not tell capacities"
    # Else it would be refused for want of any capacity at all.
    eventually "some node has room for the class" '?*' room
    apply 10-capacity
    eventually "the scheduler sees that there is no room" '*did not have enough free storage*' \
        k get pod huge -o 'jsonpath={.status.conditions[?(@.type=="PodScheduled")].message}'
    same phase Pending "$(k get pvc huge -o 'jsonpath={.status.phase}')"
    proved "a claim of 4 PiB waits, and its pod says that no node has the room"
}

# The capacities of the class that are more than nothing.
room() {
    kubectl get csistoragecapacities --all-namespaces \
        -o "jsonpath={range .items[?(@.storageClassName==\"$STORAGE_CLASS\")]}{.capacity}{'\n'}{end}" | grep -vx 0 || true
}

demo_11_statefulset() {
    local driver pod before started=()
    driver=$(kubectl get daemonset --all-namespaces -l app.kubernetes.io/part-of=pycsi,app.kubernetes.io/component=node \
        -o 'jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name}{"\n"}{end}' | head -n 1)
    [ -n "$driver" ] || skip "found no DaemonSet with the labels of the chart to restart"
    apply 11-statefulset
    for pod in store-0 store-1; do
        ready $pod
        in_pod $pod "echo '$pod' > /data/owner; sync"
        started+=("$(running $pod)")
    done
    kubectl --namespace "${driver%/*}" rollout restart daemonset "${driver#*/}"
    kubectl --namespace "${driver%/*}" rollout status daemonset "${driver#*/}" --timeout "${TIMEOUT}s"
    for pod in store-0 store-1; do
        same "$pod ran on" "${started[${pod#store-}]}" "$(running $pod)"
        before=$(in_pod $pod 'wc -l < /data/log')
        eventually "$pod writes" later newer "$pod" "$before"
    done
    k delete pod store-0
    eventually "store-0 anew" '*' other_than store-0 "${started[0]}"
    ready store-0
    same "data of store-0" store-0 "$(in_pod store-0 'cat /data/owner')"
    same "data of store-1" store-1 "$(in_pod store-1 'cat /data/owner')"
    proved "two pods on $(nodes_of store) node(s) wrote on while the driver was restarted; a pod started anew had its data"
}

# running POD: changes when the pod or its container is started again
running() { k get pod "$1" -o 'jsonpath={.metadata.uid} {.status.containerStatuses[0].restartCount}'; }

newer() { (($(in_pod "$1" 'wc -l < /data/log') > $2)) && echo later; }

other_than() { [[ $(running "$1") != "$2" ]]; }

demo_12_user_namespace() {
    [[ $(kubectl get nodes -o 'jsonpath={.items[*].status.runtimeHandlers[*].features.userNamespaces}') == *true* ]] ||
        skip "no node tells that its container runtime can give a pod its own users"
    need 01
    apply 12-user-namespace
    ready isolated
    # shellcheck disable=SC2016  # for awk in the pod
    same "the node's name of root" '' "$(in_pod isolated 'awk "\$2 == 0" /proc/self/uid_map')"
    in_pod isolated 'echo isolated > /data/isolated; echo isolated > /image/file; sync'
    same "owner in the image" 1000 "$(in_pod isolated 'stat -c %u /image/file')"
    same "owner for others" 1000 "$(in_pod writer 'stat -c %u /data/isolated')"
    same content isolated "$(in_pod writer 'cat /data/isolated')"
    proved "a pod that has users of its own wrote to two volumes, and owns what it wrote in other pods, too"
}

demo_13_attributes_class() {
    local class started node volume handle entry before
    for class in pycsi-retain pycsi-delete; do
        [ "$(kubectl get volumeattributesclass "$class" -o 'jsonpath={.driverName}' 2>/dev/null)" = "$DRIVER" ] ||
            skip "no VolumeAttributesClass $class of $DRIVER: it needs Kubernetes 1.34"
    done
    apply 13-attributes-class
    ready changing
    node=$(node_of changing)
    [ -n "$(driver_on "$node")" ] || skip "found no pod with the labels of the chart to look into"
    started=$(running changing)
    volume=$(k get pvc changing -o 'jsonpath={.spec.volumeName}')
    handle=$(kubectl get pv "$volume" -o 'jsonpath={.spec.csi.volumeHandle}')
    k patch pvc changing --type merge --patch '{"spec": {"volumeAttributesClassName": "pycsi-retain"}}'
    eventually "the class of the claim" pycsi-retain k get pvc changing -o 'jsonpath={.status.currentVolumeAttributesClassName}'
    before=$(in_pod changing 'wc -l < /data/log')
    eventually "the pod writes" later newer changing "$before"
    same "the pod" "$started" "$(running changing)"
    k delete pod changing
    k delete pvc changing
    eventually "PersistentVolume gone" '' kubectl get pv "$volume" --ignore-not-found -o name
    eventually "$handle is in the trash" '?*' in_trash "$node" "$handle"
    eventually "$handle is not in the trash any more" '' empty_trash "$node" "$handle"
    proved "a volume was told to outlive its claim while a pod wrote to it, and was in the trash when the claim was gone"
}

# in_trash NODE VOLUME: the entry of a deleted volume
in_trash() { on_node "$1" get trash -o json | awk -F'"' -v id="$2." '$2 == "entry" && index($4, id) == 1 { print $4 }'; }

# empty_trash NODE VOLUME: free it, and print what is still there
empty_trash() {
    local entry
    entry=$(in_trash "$1" "$2")
    [ -z "$entry" ] || on_node "$1" trash empty --yes "$entry" >/dev/null
    in_trash "$1" "$2"
}

demo_14_group_snapshot() {
    need_snapshots
    [ -n "$GROUP_SNAPSHOT_CLASS" ] || skip "no VolumeGroupSnapshotClass of $DRIVER: groupSnapshots.enabled of the chart, with the group CRDs"
    local writer
    apply 14-group-snapshot ledger
    ready ledger-0
    ready ledger-1
    write_in_turn &
    writer=$!
    eventually "records" '????*' tail -n 1 "$LOGS/records"
    apply 14-group-snapshot group
    eventually "group snapshot ready" true k get volumegroupsnapshot ledger -o 'jsonpath={.status.readyToUse}'
    touch "$LOGS/enough"
    wait "$writer"
    same "members of the group" 2 "$(members | wc -l)"
    proved "a snapshot of two volumes on $(nodes_of ledger) node(s) was taken while $(tail -n 1 "$LOGS/records") records were written to them in turn"
}

# One writer, two nodes: a record is written when the one before it, on the other node, has been.
write_in_turn() {
    local pod number=0 answer
    for pod in ledger-0 ledger-1; do
        mkfifo "$LOGS/$pod.in" "$LOGS/$pod.out"
        # shellcheck disable=SC2016  # for the shell in the pod
        k exec -i $pod -- sh -c 'while read -r n; do echo "$n" >> /data/records && echo "$n"; done' <"$LOGS/$pod.in" >"$LOGS/$pod.out" &
    done
    exec 3>"$LOGS/ledger-0.in" 4<"$LOGS/ledger-0.out" 5>"$LOGS/ledger-1.in" 6<"$LOGS/ledger-1.out"
    until [ -e "$LOGS/enough" ]; do
        number=$((number + 1))
        if ((number % 2)); then
            echo $number >&3
            read -r answer <&4
        else
            echo $number >&5
            read -r answer <&6
        fi
        same "the answer of the writer" $number "$answer"
        echo $number >>"$LOGS/records"
    done
}

# The snapshots that the group consists of.
members() {
    k get volumesnapshots -o 'jsonpath={range .items[?(@.status.volumeGroupSnapshotName=="ledger")]}{.metadata.name}{"\n"}{end}'
}

# nodes_of LABEL: on how many nodes its pods are
nodes_of() { k get pods -l "pycsi-demo=$1" -o 'jsonpath={range .items[*]}{.spec.nodeName}{"\n"}{end}' | sort -u | wc -l; }

demo_15_group_restore() {
    need 14
    local names last
    mapfile -t names < <(members)
    manifest 15-group-restore | sed -e "s|name: member-0|name: ${names[0]}|" -e "s|name: member-1|name: ${names[1]}|" | k apply -f -
    ready ledger-restored-0
    ready ledger-restored-1
    # Nothing is missing between the first record and the last: the copies are of one moment.
    last=$({
        in_pod ledger-restored-0 'cat /data/records'
        in_pod ledger-restored-1 'cat /data/records'
    } | sort -n | awk '$1 != NR { print "record " NR " is missing, and " $1 " is there"; lost = 1; exit } END { if (!lost) print NR }')
    if ! [[ $last =~ ^[0-9]+$ ]] || ((last == 0 || last >= $(tail -n 1 "$LOGS/records"))); then
        echo "the restored volumes have no prefix of the $(tail -n 1 "$LOGS/records") records: $last"
        return 1
    fi
    proved "the two restored volumes have records 1 to $last and no other: each write that one has, and all that came before it"
}

demo_16_restore_elsewhere() {
    need 02
    local start=$SECONDS
    apply 16-restore-elsewhere
    ready elsewhere
    same "restored content" before "$(in_pod elsewhere 'cat /data/file')"
    same "the node" "$(node_of writer)" "$(node_of elsewhere)"
    proved "a pod that preferred another node ran after $((SECONDS - start)) s where its restored volume is: $(node_of elsewhere)"
}

demo_17_changed_blocks() {
    need_snapshots
    local service=(kubectl get snapshotmetadataservice "$DRIVER" -o) namespace pod image base found
    "${service[@]}" name >/dev/null 2>&1 ||
        skip "no SnapshotMetadataService $DRIVER: snapshotMetadata.enabled of the chart, with its CRD"
    apply 17-changed-blocks blocks
    ready blocks
    in_pod blocks 'dd if=/dev/urandom of=/dev/xvda bs=1M count=16 conv=fsync 2>/dev/null'
    apply 17-changed-blocks base
    snapshot_ready blocks-base
    in_pod blocks 'dd if=/dev/urandom of=/dev/xvda bs=1M seek=8 count=2 conv=fsync 2>/dev/null'
    apply 17-changed-blocks target
    snapshot_ready blocks-target
    read -r namespace pod <<<"$(driver_on "$(node_of blocks)")"
    [ -n "$pod" ] || skip "found no pod with the labels of the chart, whose image has a client"
    image=$(kubectl -n "$namespace" get pod "$pod" -o 'jsonpath={.spec.containers[?(@.name=="pycsi")].image}')
    k create configmap backup-authority --from-literal "ca.crt=$("${service[@]}" 'jsonpath={.spec.caCert}' | base64 -d)"
    k create role backup --verb get --resource volumesnapshots.snapshot.storage.k8s.io
    k create rolebinding backup --role backup --serviceaccount "$NAMESPACE:backup"
    manifest 17-changed-blocks | sed -e "s|image: driver-image|image: $image|" \
        -e "s|pycsi-demo-audience|$("${service[@]}" 'jsonpath={.spec.audience}')|" | k apply -l pycsi-demo=backup -f -
    ready backup
    base=$(kubectl get volumesnapshotcontent "$(k get volumesnapshot blocks-base -o 'jsonpath={.status.boundVolumeSnapshotContentName}')" \
        -o 'jsonpath={.status.snapshotHandle}')
    found=$(k exec backup -- python3 /var/run/backup/changed_blocks.py "$("${service[@]}" 'jsonpath={.spec.address}')" "$NAMESPACE" "$base" blocks-target)
    # The ranges have all that was written, and little else.
    awk -v from=$((8 << 20)) -v to=$((10 << 20)) '
        { all += $2; start = $1 > from ? $1 : from; end = $1 + $2 < to ? $1 + $2 : to; if (end > start) inside += end - start }
        END { exit !(inside == to - from && all < 2 * (to - from)) }' <<<"$found" ||
        { echo "2 MiB at 8 MiB were written, and the ranges (offset, size) are: $found"; return 1; }
    proved "a client was told which $(awk '{ all += $2 } END { print all }' <<<"$found") bytes of 64 MiB differ between two snapshots"
}

# need DEMO: run it first, unless this run has done so
need() {
    [ -e "$LOGS/$1.done" ] && return
    local name
    name=$(named "$1")
    "demo_${name//-/_}"
    touch "$LOGS/$1.done"
}

named() { basename "$(echo "$1"*.yaml)" .yaml; }

show() {
    local name=$1 number=${1%%-*} start=$SECONDS status text
    # Not as a condition: that would switch set -e off inside.
    (
        set -e
        need "$number"
    ) >"$LOGS/$name" 2>&1
    status=$?
    text=$(grep -E '^(PROVED|SKIPPED) ' "$LOGS/$name" | tail -n 1)
    case $status in
        0) printf 'ok    %-22s %s (%d s)\n' "$name" "${text#PROVED }" $((SECONDS - start)) ;;
        "$SKIPPED") printf 'skip  %-22s %s\n' "$name" "${text#SKIPPED }" ;;
        *)
            FAILED+=("$name")
            printf 'FAIL  %-22s %s (%d s)\n' "$name" "$(tail -n 1 "$LOGS/$name")" $((SECONDS - start))
            sed 's/^/      | /' "$LOGS/$name"
            k get pods,pvc 2>&1 | sed 's/^/      | /'
            k get events --sort-by=.lastTimestamp 2>&1 | tail -n 15 | sed 's/^/      | /'
            ;;
    esac
}

# The names of this namespace's volumes and snapshots, which have no namespace of their own.
left() {
    kubectl get persistentvolumes -o "jsonpath={range .items[?(@.spec.claimRef.namespace==\"$NAMESPACE\")]}{.metadata.name}{' '}{end}"
    [ -z "$SNAPSHOT_CLASS" ] ||
        kubectl get volumesnapshotcontents -o "jsonpath={range .items[?(@.spec.volumeSnapshotRef.namespace==\"$NAMESPACE\")]}{.metadata.name}{' '}{end}"
}

clean_up() {
    local start=$SECONDS TIMEOUT=$((TIMEOUT > 300 ? TIMEOUT : 300))
    rm -rf "$LOGS"
    if [ -n "$KEEP" ]; then
        echo "left in place: kubectl delete namespace $NAMESPACE"
        return
    fi
    if ! kubectl delete namespace "$NAMESPACE" --timeout "${TIMEOUT}s" >/dev/null || ! eventually "volumes deleted" '' left; then
        FAILED+=("clean up")
        printf 'FAIL  %-22s look at: kubectl get all,pvc --namespace %s\n' "clean up" "$NAMESPACE"
        return
    fi
    kubectl delete storageclass "$NAMESPACE-image" --ignore-not-found >/dev/null
    printf 'ok    %-22s nothing is left (%d s)\n' "clean up" $((SECONDS - start))
}

# class_of KIND FIELD: a class of the driver's, that of the manifests if there is one
class_of() {
    local names
    names=$(kubectl get "$1" -o "jsonpath={range .items[?(@.$2==\"$DRIVER\")]}{.metadata.name}{'\n'}{end}" 2>/dev/null)
    grep -x pycsi <<<"$names" || head -n 1 <<<"$names"
}

main() {
    local demo demos=()
    kubectl get csidriver "$DRIVER" -o name >/dev/null || exit 2
    [ $# -gt 0 ] || set -- [0-9]*.yaml
    for demo in "$@"; do
        demo=$(named "${demo%.yaml}")
        [ -e "$demo.yaml" ] || { echo "no demo $demo; there are: $(echo [0-9]*.yaml)"; exit 2; }
        demos+=("$demo")
    done
    STORAGE_CLASS=${STORAGE_CLASS:-$(class_of storageclasses provisioner)}
    SNAPSHOT_CLASS=${SNAPSHOT_CLASS:-$(class_of volumesnapshotclasses driver)}
    GROUP_SNAPSHOT_CLASS=${GROUP_SNAPSHOT_CLASS:-$(class_of volumegroupsnapshotclasses driver)}
    [ -n "$STORAGE_CLASS" ] || { echo "no StorageClass of $DRIVER: make one, or set STORAGE_CLASS"; exit 2; }
    [ "$(kubectl get storageclass "$STORAGE_CLASS" -o 'jsonpath={.reclaimPolicy}')" = Delete ] ||
        { echo "StorageClass $STORAGE_CLASS keeps its volumes, so nothing could be cleaned up: set STORAGE_CLASS"; exit 2; }
    kubectl create namespace "$NAMESPACE" >/dev/null ||
        { echo "use another NAMESPACE, or delete that one: kubectl delete namespace $NAMESPACE"; exit 2; }
    FAILED=()
    LOGS=$(mktemp -d)
    trap 'exit 130' INT TERM
    trap 'clean_up; [ ${#FAILED[@]} -eq 0 ] || { echo "FAILED: ${FAILED[*]}"; exit 1; }' EXIT
    # One that comes later may have changed what an earlier one needs.
    for demo in $(printf '%s\n' "${demos[@]}" | sort -u); do show "$demo"; done
}

main "$@"
