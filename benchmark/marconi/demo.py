"""Serves the same requests with stock LRU and with Marconi, and prints and draws the comparison."""

from __future__ import annotations

import sys

from demonstration.command import main

if __name__ == "__main__":
    sys.exit(main())
