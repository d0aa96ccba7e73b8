"""Measuring in the background, and reading when certificates end."""

import datetime as dt
import itertools
import shutil
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
from conftest import needs
from hypothesis import example, given
from hypothesis import strategies as st
from rpc.conftest import wait_for

from pycsi.routing.certificates import expiries
from pycsi.server.metrics.latest import Latest
from pycsi.server.metrics.rpcs import code_label


def test_latest() -> None:
    """It is measured anew, now and then, when somebody asks; the first time at once."""
    numbers = itertools.count(1)
    latest = Latest("numbers", lambda: next(numbers))
    wait_for(lambda: latest.get() == 1)
    wait_for(lambda: latest.get() == 3, 60)


def test_latest_keeps_nobody_waiting() -> None:
    """While a measurement hangs, the one before it is told, and no second one begins."""
    begun, go = threading.Semaphore(0), threading.Semaphore(1)
    made = itertools.count(1)

    def measure() -> int:
        begun.release()
        go.acquire()
        return next(made)

    latest = Latest("slow", measure)
    wait_for(lambda: latest.get() == 1)
    begun.acquire()
    wait_for(lambda: latest.get() == 1 and begun.acquire(blocking=False), 60)
    assert [latest.get(), latest.get()] == [1, 1]
    assert not begun.acquire(blocking=False)
    go.release()
    wait_for(lambda: latest.get() == 2, 60)
    go.release(2)


def test_latest_survives_a_failure() -> None:
    """If measuring fails, what was measured before is told, and it is tried again."""
    divisors = iter([5, 0, 2])
    latest = Latest("failing", lambda: 10 // next(divisors, 2))
    seen = {latest.get()}

    def is_over() -> bool:
        seen.add(latest.get())
        return 5 in seen

    wait_for(is_over, 60)
    assert seen - {None} == {2, 5}


@pytest.mark.parametrize(
    ("code", "label"),
    [
        ("OK", "OK"),
        ("CANCELLED", "Canceled"),
        ("NOT_FOUND", "NotFound"),
        ("DEADLINE_EXCEEDED", "DeadlineExceeded"),
        ("INTERNAL", "Internal"),
    ],
)
def test_code_label(code: str, label: str) -> None:
    """Codes are spelled as Go spells them, in which sidecars and kubelets are written."""
    assert code_label(code) == label


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.mark.parametrize("days", [1, 10_000, 36_500], ids=["soon", "UTCTime", "GeneralizedTime"])
def test_expiries(tmp_path: Path, days: int) -> None:
    """They are those that openssl(1) gives, in either form of time, of each certificate."""
    needs("openssl", met=shutil.which("openssl") is not None)
    text = ""
    for name in ("a", "b"):
        file = tmp_path / name
        new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        openssl(*new, "-keyout", f"{file}.key", "-out", str(file), "-subj", "/", "-days", str(days))
        text += f"a comment\n{file.read_text()}"
    shown = subprocess.run(
        ["openssl", "x509", "-in", tmp_path / "b", "-noout", "-enddate"],
        check=True, capture_output=True, text=True,
    ).stdout.strip().removeprefix("notAfter=")  # fmt: skip
    expected = ssl.cert_time_to_seconds(shown)
    found = expiries(text)
    assert len(found) == 2
    assert found[1] == expected
    in_days = dt.timedelta(seconds=expected - dt.datetime.now(dt.UTC).timestamp()).days
    assert in_days in {days - 1, days}
    der = ssl.PEM_cert_to_DER_cert(file.read_text())
    assert not any(is_readable(der[:length]) for length in range(len(der)))


def is_readable(der: bytes) -> bool:
    try:
        return bool(expiries(ssl.DER_cert_to_PEM_cert(der)))
    except ValueError:
        return False


@given(st.binary(max_size=64))
@example(b"\x30\x84\xff\xff\xff\xff")
@example(b"\x30\x03\x30\x01\xa0")
def test_damaged_certificate(der: bytes) -> None:
    """What is no certificate is a `ValueError`, not another error."""
    assert not is_readable(der)
