"""Do the launches that operators make serve with policy 3, with stock's answers?"""

from __future__ import annotations

import sys

from launches.command import main

if __name__ == "__main__":
    sys.exit(main())
