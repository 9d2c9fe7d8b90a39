"""No prefix cache, LRU and Marconi on SGLang's own ``generated-shared-prefix`` benchmark."""

from __future__ import annotations

import sys

from live.bench_seed import main

if __name__ == "__main__":
    sys.exit(main())
