"""The parts of `pycsi adopt` that read and write what Kubernetes says of volumes."""

import pytest

from pycsi.cli.adoption import cluster, manifests
from pycsi.cli.adoption.candidates import Candidate


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1Gi", 1 << 30),
        ("1.5Ki", 1536),
        ("500M", 500_000_000),
        ("2k", 2000),
        ("1e3", 1000),
        ("128974848", 128974848),
        ("0.0001", 1),
        ("3Ei", 3 << 60),
        ("100m", None),
        ("Gi", None),
        ("", None),
        (None, None),
    ],
)
def test_quantity(text: str | None, size: int | None) -> None:
    """A quantity is read as the API server does, rounded up to whole bytes."""
    assert cluster.quantity(text) == size


@pytest.mark.parametrize("size", [4096, 5 << 30, (1 << 40) + 4096, 3 << 50])
def test_quantity_is_exact(size: int) -> None:
    assert cluster.quantity(manifests.quantity(size)) == size


@pytest.mark.parametrize(
    ("name", "expected"),
    [("pvc-1", "pvc-1-pycsi"), ("My Data", "my-data-pycsi"), ("..", "volume-pycsi")],
)
def test_name_of_the_new_volume(name: str, expected: str) -> None:
    """It is one that an object of Kubernetes can have."""
    assert manifests.volume_name(Candidate(path="/x", name=name, layout="bare")) == expected
