"""Request traces of many formats, read as one stream of :class:`Request`."""

from traces.formats import FORMATS
from traces.reader import TraceReader, read_trace
from traces.request import Request, TraceError
from traces.timing import Timing

__all__ = ["FORMATS", "Request", "Timing", "TraceError", "TraceReader", "read_trace"]
