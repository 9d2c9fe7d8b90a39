"""A table of result rows: one line a trace and size, one column a policy, hit % / FLOPs saved %."""

from __future__ import annotations

from lab.table import main

if __name__ == "__main__":
    main()
