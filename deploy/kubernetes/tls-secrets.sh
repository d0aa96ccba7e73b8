#!/usr/bin/env bash
# Make the certificates with which the controller and the nodes know each other, and print them as two Secrets:
#
#   tls-secrets.sh [OPTION]... | kubectl apply -f -
#   tls-secrets.sh [OPTION]... DIRECTORY
#
# With a DIRECTORY it writes DIRECTORY/controller/ and DIRECTORY/node/ instead, each with ca.crt, tls.crt and tls.key: what
# `pycsi serve --tls-directory` reads. Each run makes a new authority and throws its key away: to renew, run it again.
#
#   --driver-name NAME      as `pycsi serve` has it (pycsi.storage)
#   --namespace NAMESPACE   of the Secrets (pycsi-system)
#   --release NAME          what the names of the Secrets begin with (pycsi)
#   --days DAYS             how long the certificates are valid (3650)
#
# Needs openssl. The certificates hold for controller.NAME and node.NAME, whatever the addresses of the nodes are.
set -euo pipefail
umask 077

driver=pycsi.storage
namespace=pycsi-system
release=pycsi
days=3650
directory=

fail() {
    echo "tls-secrets.sh: $*" >&2
    exit 2
}

# Show what stands above.
help() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
}

while [ $# -gt 0 ]; do
    case $1 in
        -h | --help)
            help
            exit 0
            ;;
        --driver-name | --namespace | --release | --days)
            [ $# -ge 2 ] || fail "$1 needs a value"
            case $1 in
                --driver-name) driver=$(tr '[:upper:]' '[:lower:]' <<<"$2") ;;
                --namespace) namespace=$2 ;;
                --release) release=$2 ;;
                --days) days=$2 ;;
            esac
            shift 2
            ;;
        -*) fail "no option $1; see --help" ;;
        *)
            [ -z "$directory" ] || fail "more than one directory: $directory, $1"
            directory=$1
            shift
            ;;
    esac
done

label='[a-z0-9]([-a-z0-9]*[a-z0-9])?'
[[ $driver =~ ^[a-z0-9]([-a-z0-9._]*[a-z0-9])?$ && ${#driver} -le 63 ]] || fail "not the name of a driver: $driver"
[[ $namespace =~ ^$label$ ]] || fail "not the name of a namespace: $namespace"
[[ $release =~ ^$label$ ]] || fail "not a name that a Secret can begin with: $release"
[[ $days =~ ^[1-9][0-9]{0,4}$ ]] || fail "not a number of days from 1 to 99999: $days"
command -v openssl >/dev/null || fail "openssl is not on PATH: install it first"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Run openssl, and show what it says only if it fails.
run() {
    openssl "$@" >"$work/said" 2>&1 || { cat "$work/said" >&2; fail "openssl $1 has failed"; }
}

# Write to FILE a configuration with the subject NAME and no more, and the extensions that stand on standard input.
configure() {
    { printf '[req]\nprompt=no\ndistinguished_name=subject\n[subject]\nCN=%s\n[extensions]\n' "$2"; cat; } >"$1"
}

new_key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)

make_authority() {
    configure "$work/ca.cnf" "pycsi authority" <<-EOT
		basicConstraints=critical,CA:TRUE,pathlen:0
		keyUsage=critical,keyCertSign,cRLSign
		subjectKeyIdentifier=hash
	EOT
    run req -x509 -config "$work/ca.cnf" -extensions extensions "${new_key[@]}" -sha256 -days "$days" \
        -keyout "$work/ca.key" -out "$work/ca.crt"
}

# Make a certificate for the ROLE controller or node, which it has only as a client, or only as a server: USAGE.
make_certificate() {
    local role=$1 usage=$2 into=$work/$1
    mkdir "$into"
    # A subject has at most 64 characters. What counts is the DNS name.
    configure "$work/$role.cnf" "pycsi $role" <<-EOT
		basicConstraints=critical,CA:FALSE
		keyUsage=critical,digitalSignature
		extendedKeyUsage=$usage
		subjectAltName=DNS:$role.$driver
		subjectKeyIdentifier=hash
		authorityKeyIdentifier=keyid
	EOT
    run req -new -config "$work/$role.cnf" "${new_key[@]}" -sha256 -keyout "$into/tls.key" -out "$work/$role.csr"
    run x509 -req -in "$work/$role.csr" -extfile "$work/$role.cnf" -extensions extensions -sha256 -days "$days" \
        -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAcreateserial -out "$into/tls.crt"
    cp "$work/ca.crt" "$into/ca.crt"
}

print_secret() {
    local role=$1 name
    printf -- '---\napiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\n'
    printf 'metadata:\n  name: %s-%s-tls\n  namespace: %s\ndata:\n' "$release" "$role" "$namespace"
    for name in ca.crt tls.crt tls.key; do
        printf '  %s: %s\n' "$name" "$(openssl base64 -A -in "$work/$role/$name")"
    done
}

# Put ROLE's files into DIRECTORY/ROLE, each in one step.
write_files() {
    local role=$1 name
    mkdir -p "$directory/$role"
    for name in ca.crt tls.crt tls.key; do
        cp "$work/$role/$name" "$directory/$role/$name.new"
        mv -f "$directory/$role/$name.new" "$directory/$role/$name"
    done
}

make_authority
make_certificate controller clientAuth
make_certificate node serverAuth
for role in controller node; do
    if [ -n "$directory" ]; then write_files "$role"; else print_secret "$role"; fi
done
