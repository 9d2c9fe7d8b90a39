"""Real servers on a slice of a trace, in equal memory: stock LRU, policies 2 and 3, elastic."""

from __future__ import annotations

import sys

from live.comparison import main

if __name__ == "__main__":
    sys.exit(main())
