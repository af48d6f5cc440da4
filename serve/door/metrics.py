"""What the door counts, for Prometheus: requests, tokens and times by adapter; requests and tokens by tenant.

Labels are names of adapters that were found, and tenants of the key file, so a client can't make new series by
inventing names: whatever wasn't found is "unknown". Adapters and tenants don't appear in one series, which would be as
many as their product. Versions are counted where a split or an update is judged by it, but not in histograms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from adapterhub.words import short

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
UNKNOWN = "unknown"
CANCELLED = "cancelled"
"""The status of a request whose client went away before its end."""

OK = 200

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_PREFIX = "adapterhub_"


class Metrics:
    """A registry of its own, so that several doors in one process don't meet."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(_PREFIX + name, text, labels, registry=self._registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(_PREFIX + name, text, registry=self._registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(
                _PREFIX + name, text, labels, registry=self._registry, buckets=_SECONDS
            )

        self._requests = counter(
            "requests", "Requests by HTTP status, or cancelled.", "adapter", "version", "status"
        )
        self._tokens = counter("tokens", "Tokens: in or out.", "adapter", "version", "direction")
        self._errors = counter(
            "engine_errors", "Answers that the engine failed to give.", "adapter", "kind"
        )
        self._by_tenant = counter("tenant_requests", "Requests by tenant.", "tenant", "status")
        self._tenant_tokens = counter(
            "tenant_tokens", "Tokens by tenant: in or out.", "tenant", "direction"
        )
        self._first = seconds(
            "time_to_first_token_seconds", "From the request to the first event.", "adapter"
        )
        self._whole = seconds("request_seconds", "From the request to its end.", "adapter")
        self._loads = counter("adapter_loads", "Versions loaded into the engine.", "version")
        self._evictions = counter("adapter_evictions", "Versions put out of it.", "version")
        self._load_seconds = seconds("adapter_load_seconds", "Loading one version.")
        self._held = gauge("adapters_loaded", "Versions in the engine now.")
        self._running = gauge("answers_running", "Answers being written now.")
        self._waiting = gauge("requests_waiting", "Requests that wait for a place.")

    def watch(
        self, held: Callable[[], int], running: Callable[[], int], waiting: Callable[[], int]
    ) -> None:
        """Where the numbers of now come from: they are asked for when somebody reads the metrics."""
        self._held.set_function(held)
        self._running.set_function(running)
        self._waiting.set_function(waiting)

    def answered(
        self, adapter: str, digest: str | None, tenant: str, status: int | str, seconds: float
    ) -> None:
        """A request is over. `adapter` is a name that was found, or UNKNOWN."""
        self._requests.labels(adapter, _version(digest), str(status)).inc()
        self._by_tenant.labels(tenant, str(status)).inc()
        if adapter != UNKNOWN:
            self._whole.labels(adapter).observe(seconds)

    def first_token(self, adapter: str, seconds: float) -> None:
        """The first event of a stream was passed on."""
        self._first.labels(adapter).observe(seconds)

    def used(self, adapter: str, digest: str | None, tenant: str, into: int, out: int) -> None:
        """Tokens of a prompt and of what was written."""
        for direction, number in (("in", into), ("out", out)):
            self._tokens.labels(adapter, _version(digest), direction).inc(number)
            self._tenant_tokens.labels(tenant, direction).inc(number)

    def failed(self, adapter: str, kind: str) -> None:
        """The engine was away, died, or was too slow."""
        self._errors.labels(adapter, kind).inc()

    def loaded(self, digest: str, seconds: float) -> None:
        """A version was loaded, which took `seconds`."""
        self._loads.labels(_version(digest)).inc()
        self._load_seconds.observe(seconds)

    def evicted(self, digest: str) -> None:
        """A version was put out."""
        self._evictions.labels(_version(digest)).inc()

    def traffic(self) -> list[dict[str, Any]]:
        """What was asked so far, by adapter and version (empty for the base), as data; the most asked first."""
        rows: dict[tuple[str, str], dict[str, Any]] = {}

        def row(labels: dict[str, str]) -> dict[str, Any]:
            key = (labels["adapter"], labels["version"])
            numbers = dict.fromkeys(
                ("answered", "failed", "cancelled", "tokens_in", "tokens_out"), 0
            )
            return rows.setdefault(key, {"adapter": key[0], "version": key[1], **numbers})

        for labels, number in _samples(self._requests):
            status = labels["status"]
            kind = (
                "answered"
                if status == str(OK)
                else "cancelled"
                if status == CANCELLED
                else "failed"
            )
            row(labels)[kind] += number
        for labels, number in _samples(self._tokens):
            row(labels)[f"tokens_{labels['direction']}"] += number
        return sorted(rows.values(), key=lambda one: -one["answered"])

    def swaps(self) -> dict[str, dict[str, int]]:
        """How often each version (its short digest) was loaded and put out."""
        found: dict[str, dict[str, int]] = {}
        for key, counter in (("loads", self._loads), ("evictions", self._evictions)):
            for labels, number in _samples(counter):
                found.setdefault(labels["version"], {"loads": 0, "evictions": 0})[key] = number
        return found

    def now(self) -> dict[str, int]:
        """Answers being written, and requests that wait for a place."""
        return {"running": _value(self._running), "waiting": _value(self._waiting)}

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)


def _samples(counter: Counter) -> Iterator[tuple[dict[str, str], int]]:
    """Labels and value of everything a counter has counted."""
    for metric in counter.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                yield sample.labels, int(sample.value)


def _value(gauge: Gauge) -> int:
    return next(int(sample.value) for metric in gauge.collect() for sample in metric.samples)


def _version(digest: str | None) -> str:
    return short(digest) if digest else ""
