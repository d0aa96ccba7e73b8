"""What a driver tells Prometheus, as a test reads it."""

import http.client
import shutil
import subprocess

from conftest import needs
from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """The samples of one scrape, checked by promtool(1) if it is there."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    @property
    def names(self) -> set[str]:
        return {sample.name for sample in self._samples}

    def all(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        """Return the labels and the value of each sample of that name that has the labels."""
        return [
            (sample.labels, sample.value)
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def __call__(self, name: str, **labels: str) -> float | None:
        """Return the value of the one sample that has the labels, or None if there is none."""
        found = self.all(name, **labels)
        assert len(found) <= 1, found
        return found[0][1] if found else None


def get(port: int, path: str, host: str = "127.0.0.1", method: str = "GET") -> tuple[int, str]:
    """Return the status and the text with which a driver answers an HTTP request."""
    connection = http.client.HTTPConnection(host, port, timeout=10)
    connection.request(method, path)
    with connection.getresponse() as answer:
        text = answer.read().decode()
    connection.close()
    return answer.status, text


def scrape(port: int, host: str = "127.0.0.1") -> Scrape:
    """Return what a driver tells now."""
    status, text = get(port, "/metrics", host)
    assert status == 200
    return Scrape(text)


def promtool(*arguments: str, given: str = "") -> None:
    """Expect Prometheus' own tool to find nothing wrong."""
    needs("promtool", met=shutil.which("promtool") is not None)
    done = subprocess.run(
        ["promtool", *arguments], input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
