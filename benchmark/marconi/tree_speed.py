"""Microseconds a tree operation: ours beside stock's two tree cores, interleaved in one run."""

from __future__ import annotations

from speed.tree import main

if __name__ == "__main__":
    main()
