# The machine on which the documents' commands are run. What would leave it, or change the clone, is written down in
# /srv/called, a line of JSON for each, and checked afterwards; `pycsi` is the real one, and its exit status is
# written down too.

: >/srv/called
mkdir /srv/changes /srv/work /srv/clone
mount -t overlay overlay -o "lowerdir=$CLONE,upperdir=/srv/changes,workdir=/srv/work" /srv/clone

cat >/run/bin/recorded <<'END'
#!/bin/bash
# NAME WORD...: write down that a program was called; do what it would do on this machine
name=$(basename "$0")
status=null
case $name in
pycsi)
    if [ "$1" = serve ]; then # goes on, as it would in a terminal of its own
        "$PYTHON" -m pycsi "$@" 2>/run/serve.$$ &
        for _ in {1..200}; do
            grep -q '"serving"' /run/serve.$$ && break
            sleep 0.1
        done
        grep -q '"serving"' /run/serve.$$
    else
        "$PYTHON" -m pycsi "$@"
    fi
    status=$?
    ;;
restic)
    PATH=${PATH#/run/bin:} command restic "$@"
    status=$?
    ;;
esac
"$PYTHON" -IS -c 'import json, sys; print(json.dumps([sys.argv[1], sys.argv[2:]]))' "$name:$status" "$@" >>/srv/called
case $name in
kubectl | docker)
    for word; do
        [ "$word" = -- ] && break
        [ "$word" = - ] && cat >/srv/manifests.$$
    done
    case "$*" in
    "get pv,pvc,pod"*) echo '{"kind": "List", "items": []}' ;;
    "get pv,volumesnapshotcontents"*) cat <<'LIST' ;;
{"kind": "List", "items": [{"kind": "PersistentVolume", "metadata": {"name": "data"}, "spec": {
  "capacity": {"storage": "1Gi"}, "csi": {"driver": "pycsi.storage", "volumeHandle": "data@node-1"}}}]}
LIST
    "get pv"* | "get volumesnapshotcontents"*) echo "one data@NODE" ;;
    esac
    while [ $# -gt 0 ]; do
        word=$1
        shift
        if [ "$word" = -- ]; then exec "$@"; fi
    done
    ;;
nomad) [ "$2" = status ] && echo node-1 ;;
sudo) exec "$@" ;;
ssh) shift && exec "$@" ;;
esac
exit "${status/null/0}"
END
chmod +x /run/bin/recorded
for name in pycsi kubectl helm docker nomad make restic velero sudo ssh python3 dmesg pip apt-get modprobe quotaon; do
    ln -sf recorded /run/bin/$name
done
rm -rf /srv/clone/.venv
mkdir -p /srv/clone/.venv/bin
for name in pycsi pip python; do
    ln -s /run/bin/recorded /srv/clone/.venv/bin/$name
done

command_not_found_handle() {
    printf '["not found", ["%s"]]\n' "$1" >>/srv/called
    return 127
}

shopt -s expand_aliases
cd /srv/clone
