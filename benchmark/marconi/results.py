"""The rows behind every figure of the documentation: run again, pages written, what is old."""

from __future__ import annotations

import sys

from rows.command import main

if __name__ == "__main__":
    sys.exit(main())
