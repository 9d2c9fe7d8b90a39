"""Does any operation of ours wait for the GPU where stock's does not, and how long does it take?"""

from __future__ import annotations

import sys

from gpu.check import main

if __name__ == "__main__":
    sys.exit(main())
