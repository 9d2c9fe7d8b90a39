"""Does the simulator hit what a real server hits, request by request?"""

from __future__ import annotations

import sys

from live.against_lab import main

if __name__ == "__main__":
    sys.exit(main())
