"""Redoes the fits behind ``chat_workload.py`` from a trace, and says how well they fit."""

from __future__ import annotations

from traces.generator.fit_chat import main

if __name__ == "__main__":
    main()
