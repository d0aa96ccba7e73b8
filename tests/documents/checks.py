"""What is checked of a command that a document shows, by the program that it calls."""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import pycsi

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SECRETS = {"pycsi-node-tls", "pycsi-controller-tls"}
"""What the script makes, or Helm, beside the objects of the manifests."""

TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

_NOT_0: Mapping[str, set[int]] = {
    "adopt --finish": {2},
    "trash empty": {2},
    "delete volume": {2},
    "delete snapshot": {2},
    "move --endpoint unix:///csi/csi.sock data@node-1 --to-node": {1, 2},
    "move data@node-1 --to-node": {1},
}
"""How commands end that ask somebody, a person or a controller, since there is nobody."""

Words = Sequence[str]


@functools.cache
def manifests() -> list[dict[str, Any]]:
    places = [*DEPLOY.glob("kubernetes/*.yaml"), *DEPLOY.glob("demos/*.yaml")]
    every = [item for place in places for item in yaml.safe_load_all(place.read_text())]
    return [item for item in every if "metadata" in item]


def _inside(item: Any, key: str) -> Iterator[Any]:
    """Yield all values under a key, however deep."""
    if isinstance(item, dict):
        yield from (value for name, value in item.items() if name == key)
        item = list(item.values())
    if isinstance(item, list):
        for inner in item:
            yield from _inside(inner, key)


@functools.cache
def names() -> set[str]:
    """Return `kind/name` and the name of each object, and the names of containers."""
    found = set(SECRETS)
    for item in manifests():
        found |= {item["metadata"]["name"], f"{item['kind'].lower()}/{item['metadata']['name']}"}
        for containers in _inside(item, "containers"):
            found |= {container["name"] for container in containers}
    return found


@functools.cache
def labels() -> set[str]:
    every = [found for item in manifests() for found in _inside(item, "labels")]
    return {f"{key}={value}" for found in every for key, value in found.items()}


def _split(words: Words, flags: Mapping[str, bool]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the words that are no flags, and the flags with their values."""
    plain, given, left = [], [], list(words)
    while left:
        word = left.pop(0)
        flag, equals, value = word.partition("=")
        if not word.startswith("-") or word == "-":
            plain.append(word)
            continue
        assert flag in flags, f"{flag}: add it to the flags if it is one"
        if flags[flag] and not equals:
            value = left.pop(0)
        given.append((flag, value))
    return plain, given


_KUBECTL = {
    **dict.fromkeys(("-n", "-c", "-f", "-k", "-l", "-o", "-p", "--for", "--timeout"), True),
    **dict.fromkeys(("--type", "--field-selector", "--tail", "--namespace"), True),
    **dict.fromkeys(("-i", "--force", "--ignore-daemonsets", "--delete-emptydir-data"), False),
    **dict.fromkeys(("--prefix", "--wait", "-A", "--all-namespaces", "--previous"), False),
}  # fmt: skip
_VERBS = {
    "annotate",
    "apply",
    "cordon",
    "create",
    "delete",
    "describe",
    "drain",
    "exec",
    "get",
    "label",
    "logs",
    "patch",
    "rollout",
    "uncordon",
    "wait",
}


def kubectl(words: Words, _: str) -> None:
    """Fail unless the verb, the flags, and the names of what the manifests make, exist."""
    own = words[: words.index("--")] if "--" in words else words
    plain, flags = _split(own, _KUBECTL)
    assert plain[0] in _VERBS
    for word in plain:
        if "pycsi-" in word and not word.startswith(("pycsi-system", "pod-security")):
            assert word in names(), word
    for flag, value in flags:
        match flag:
            case "-n" | "--namespace":
                assert value in {"pycsi-system", "NAMESPACE"}
            case "-c":
                assert value in names(), value
            case "-p":
                json.loads(value)
            case "-f" | "-k" if value != "-" and not value.startswith("https://"):
                assert list(yaml.safe_load_all((ROOT / value).read_text()))
            case "-l":
                for label in value.split(","):
                    known = label in labels() or label.startswith("csi.storage.k8s.io/")
                    assert known or label == "kubernetes.io/service-name=pycsi-nodes", label


_HELM = {
    **dict.fromkeys(("-n", "--namespace", "--set", "-f", "--values", "--version"), True),
    **dict.fromkeys(("--reset-then-reuse-values", "--create-namespace"), False),
}  # fmt: skip


def helm(words: Words, _: str) -> None:
    """Fail unless the chart, and the values that are set, exist."""
    (verb, release, *charts), flags = _split(words, _HELM)
    assert verb in {"install", "upgrade", "uninstall", "test"}
    assert release == "pycsi"
    values = yaml.safe_load((DEPLOY / "helm/pycsi/values.yaml").read_text())
    for chart in charts:
        assert (ROOT / chart / "Chart.yaml").exists()
    for flag, value in flags:
        if flag == "--set":
            functools.reduce(
                lambda there, key: there[key], value.partition("=")[0].split("."), values
            )
        elif flag in {"-f", "--values"}:
            assert value == "-" or (ROOT / value).exists(), value


def docker(words: Words, _: str) -> None:
    verb, *images = words
    assert verb in {"push", "save", "load"}
    for image in images:
        assert re.fullmatch(rf"(localhost|registry\.example\.com)/pycsi:{pycsi.__version__}", image)


def nomad(words: Words, _: str) -> None:
    """Fail unless the job file has the variables, and the plugin is that of the job."""
    match list(words):
        case ["job", "run", "-var", variable, place]:
            text = (DEPLOY / "nomad" / place).read_text()
            assert f'variable "{variable.partition("=")[0]}"' in text
        case ["plugin", "status", plugin]:
            assert plugin == "pycsi-node-1"
        case ["volume", "create" | "register", place]:
            assert (DEPLOY / "nomad" / place).exists()
        case _:
            assert words[:2] in (["node", "status"], ["volume", "status"], ["volume", "snapshot"])


def make(words: Words, _: str) -> None:
    assert words
    assert all(word in TARGETS or "=" in word for word in words), words


def python(words: Words, _: str) -> None:
    """Fail unless a program of the clone has the options that it is given."""
    if words[0] == "-m":
        assert words[1] == "venv"
        return
    shown = subprocess.run(
        [sys.executable, ROOT / words[0], "--help"], capture_output=True, text=True, check=True
    ).stdout
    for word in words[1:]:
        assert not word.startswith("-") or word in shown, word


def own(words: Words, status: str) -> None:
    """Fail unless pycsi has done what it was told to, or has asked."""
    asks = () if "--yes" in words else _NOT_0.items()
    usual = next((those for start, those in asks if " ".join(words).startswith(start)), {0})
    assert int(status) in usual, f"pycsi {' '.join(words)}: {status}"


def restic(words: Words, status: str) -> None:
    """Fail unless restic has done what it was told to."""
    assert status == "0", f"restic {' '.join(words)}: {status}"


def velero(words: Words, _: str) -> None:
    """Fail for what its documentation does not show."""
    flags = {"--include-namespaces": True, "--from-backup": True, "--snapshot-move-data": False}
    plain, _given = _split(words, flags)
    assert plain[:2] in (["backup", "create"], ["restore", "create"])


def _missing(words: Words, _: str) -> None:
    raise AssertionError(f"there is no program {words[0]}")


def _anything(words: Words, _: str) -> None:
    """Take whatever it is: its words are a command, or it only looks."""


CHECKS: Mapping[str, Callable[[Words, str], None]] = {
    "not found": _missing,
    "pycsi": own,
    "kubectl": kubectl,
    "helm": helm,
    "docker": docker,
    "nomad": nomad,
    "make": make,
    "restic": restic,
    "velero": velero,
    "python": python,
    "python3": python,
    **dict.fromkeys(("sudo", "ssh", "dmesg", "pip", "apt-get", "modprobe", "quotaon"), _anything),
}
"""Of each program that is written down, what is checked of its words and its exit status."""
