"""What does Marconi cost a busy server? Stock with its Rust tree core beside the policies."""

from __future__ import annotations

import sys

from speed.server import main

if __name__ == "__main__":
    sys.exit(main())
