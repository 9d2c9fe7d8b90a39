"""The runs behind the analogues of the paper's figures 7 to 13, over generated traces."""

from __future__ import annotations

from paper.figures import main

if __name__ == "__main__":
    main()
