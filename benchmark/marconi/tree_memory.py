"""Bytes a cached prefix that Marconi keeps on the host beside SGLang's tree, by part."""

from __future__ import annotations

from speed.memory import main

if __name__ == "__main__":
    main()
