"""Do SGLang's own tests say the same of our cache as of stock's?"""

from __future__ import annotations

import sys

from peer.compare import main

if __name__ == "__main__":
    sys.exit(main())
