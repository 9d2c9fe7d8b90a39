"""How many candidates does a decision of policy 2 look at on a real trace?"""

from __future__ import annotations

import sys

from speed.staircase import main

if __name__ == "__main__":
    sys.exit(main())
