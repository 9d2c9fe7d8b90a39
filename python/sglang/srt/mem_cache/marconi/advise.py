"""The old name of ``sglang-marconi advise``."""

from __future__ import annotations

import sys

from sglang.srt.mem_cache.marconi.advice.command import main

if __name__ == "__main__":
    print("advise is now: sglang-marconi advise (it takes the same options)", file=sys.stderr)
    sys.exit(main())
