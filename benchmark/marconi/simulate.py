"""What would a policy have saved on a trace with this much memory? Asked of the product's cache."""

from __future__ import annotations

import sys

from lab.command import main

if __name__ == "__main__":
    sys.exit(main())
