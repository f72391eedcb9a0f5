"""What a metrics endpoint shows, read as Prometheus reads it."""

import re
import urllib.request
from dataclasses import dataclass
from typing import Self

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Sample:
    name: str
    labels: dict[str, str]
    value: float


class Exposition:
    """One answer of an endpoint."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = [
            Sample(found["name"], dict(_LABEL.findall(found["labels"] or "")), float(found["value"]))
            for line in text.splitlines()
            if not line.startswith("#") and (found := _SAMPLE.match(line))
        ]

    @classmethod
    def of(cls, address: str) -> Self:
        """Ask an endpoint, blocking."""
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            return cls(answer.read().decode())

    def find(self, name: str, **labels: str) -> list[Sample]:
        """The series of this name that have these labels."""
        return [one for one in self.samples if one.name == name and labels.items() <= one.labels.items()]

    def ours(self) -> list[Sample]:
        """What `longtake.observability.metrics` knows."""
        return [one for one in self.samples if one.name.startswith("longtake_")]

    def sum(self, name: str, **labels: str) -> float:
        """Their sum; a series that is not there is an error, because a sum of nothing proves nothing."""
        found = self.find(name, **labels)
        assert found, f"there is no {name} with {labels}"
        return sum(one.value for one in found)

    def added(self, before: "Exposition", name: str, *by: str) -> dict[tuple[str, ...], float]:
        """What a counter has grown by since, by the values of these labels; without what has not changed."""
        added: dict[tuple[str, ...], float] = {}
        for exposition, sign in ((self, 1), (before, -1)):
            for one in exposition.find(name):
                key = tuple(one.labels[label] for label in by)
                added[key] = added.get(key, 0) + sign * one.value
        return {key: value for key, value in added.items() if value}
