"""Request traces of many formats, read as one stream of :class:`Request`."""

from traces.reader import read_trace
from traces.request import Request, TraceError

__all__ = ["Request", "TraceError", "read_trace"]
