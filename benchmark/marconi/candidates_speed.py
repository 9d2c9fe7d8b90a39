"""How long does choosing a victim take as the cache grows? The index beside a scan."""

from __future__ import annotations

from speed.candidates import main

if __name__ == "__main__":
    main()
