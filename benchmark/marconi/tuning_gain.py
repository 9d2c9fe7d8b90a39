"""What does retrospective tuning save on a trace, beside every fixed weight?"""

from __future__ import annotations

from lab.tuning_gain import main

if __name__ == "__main__":
    main()
