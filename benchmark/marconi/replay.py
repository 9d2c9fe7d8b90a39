"""Sends a trace to running servers, and compares what they hit and how fast they are."""

from __future__ import annotations

import sys

from live.replay import main

if __name__ == "__main__":
    sys.exit(main())
