# What goes before the commands of the cases: functions that make pools, volumes, drivers and certificates.
# /srv and /var/lib/pycsi are empty directories of a disk; pycsi was never used on this machine.

powerless() { # COMMAND...: run it without what makes root mighty (capabilities(7))
    setpriv --inh-caps=-all --bounding-set=-all "$@"
}

pool() {
    mkdir /srv/pool
    export PYCSI_POOL=default=/srv/pool PYCSI_NODE_ID=node-1
}

volume() { # [OPTION...]: data@node-1
    pool
    pycsi create data --size 32Mi --type directory -p quota=none "$@"
}

raw() { # raw@node-1, a raw block volume, and its snapshots s and t
    pool
    pycsi create raw --size 32Mi --type block
    pycsi snapshot raw s
    pycsi snapshot raw t
}

mounted() {
    volume
    pycsi mount data /mnt/data
}

deleted() {
    volume -p onDelete=retain
    pycsi delete volume data --yes
}

inline() { # an inline volume, whose pod has it mounted at /mnt/pod
    served
    "$PYTHON" - <<'END'
import grpc
from pycsi.proto import csi_pb2 as csi, csi_pb2_grpc
kind = csi.VolumeCapability
csi_pb2_grpc.NodeStub(grpc.insecure_channel("unix:///run/csi.sock")).NodePublishVolume(
    csi.NodePublishVolumeRequest(
        volume_id="csi-inline", target_path="/mnt/pod",
        volume_capability=kind(mount=kind.MountVolume(), access_mode=kind.AccessMode(mode=1)),
        volume_context={"csi.storage.k8s.io/ephemeral": "true", "size": "32Mi", "type": "image"},
    )
)
END
}

left() { # [PATH]: a directory of somebody else's, beside a pool
    volume
    mkdir "${1:-/srv/old}"
    echo kept >"${1:-/srv/old}/file"
}

adopted() { # [PATH]: old@node-1
    left "$@"
    pycsi adopt --from "${1:-/srv/old}" --layout bare --size 32Mi --no-limit --yes
}

persistent_volume_elsewhere() {
    cat <<'END'
{"kind": "List", "items": [{"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "there"},
  "spec": {"capacity": {"storage": "32Mi"}, "local": {"path": "/srv/there"}, "nodeAffinity": {"required":
    {"nodeSelectorTerms": [{"matchExpressions": [
      {"key": "kubernetes.io/hostname", "operator": "In", "values": ["elsewhere"]}]}]}}}}]}
END
}

wait_for() { # TEXT FILE
    for _ in {1..400}; do
        grep -q -e "$1" "$2" && return
        sleep 0.05
    done
    return 1
}

served() { # [OPTION...]: a driver on the pool, at /run/csi.sock
    pool
    pycsi serve --endpoint /run/csi.sock "$@" 2>/srv/log &
    wait_for '"serving"' /srv/log
}

damaged() { # FILE
    echo damaged >"$1"
}

listening() { # one that listens on a unix socket, and answers nothing
    "$PYTHON" -c "
import socket, time
with socket.socket(socket.AF_UNIX) as it:
    it.bind('$1')
    it.listen()
    time.sleep(600)" &
    for _ in {1..200}; do
        [ -S "$1" ] && break
        sleep 0.05
    done
}

certificate() { # DIRECTORY KEY [PARAMETER]: ca.crt, tls.crt and tls.key
    mkdir -p "$1"
    openssl req -x509 -newkey "$2" ${3:+-pkeyopt "$3"} -nodes -subj /CN=somebody -keyout "$1/tls.key" -out "$1/tls.crt"
    cp "$1/tls.crt" "$1/ca.crt"
}

certificates() {
    certificate /srv/tls ec ec_paramgen_curve:P-256
    export PYCSI_TLS_DIRECTORY=/srv/tls
}

silent() { # the disk at /mnt does not answer for 9 seconds: then what asked it can end
    "$PYTHON" -c "
import time
from pathlib import Path
from silent import SilentFilesystem
with SilentFilesystem(Path('/mnt')) as it:
    it.fall_silent()
    print('silent', flush=True)
    time.sleep(9)" >/srv/silent &
    wait_for . /srv/silent
}
