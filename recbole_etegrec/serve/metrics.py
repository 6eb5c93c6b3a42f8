"""What the server counts, in the text format of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Counts of one server, which begin at 0.

    Attributes:
        media_type: the media type of :meth:`text`.
    """

    media_type = CONTENT_TYPE_LATEST

    def __init__(self):
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "etegrec_requests", "Requests.", ("path", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "etegrec_request_seconds",
            "From a request's head to its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "etegrec_batch_size",
            "Requests that were ranked at once.",
            buckets=_SIZES,
            registry=self._registry,
        )
        self.waiting = Gauge(
            "etegrec_waiting", "Requests that wait for the model.", registry=self._registry
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def batch(self, size: int) -> None:
        """Count a batch."""
        self._batches.observe(size)

    def text(self) -> bytes:
        """All counts."""
        return generate_latest(self._registry)
