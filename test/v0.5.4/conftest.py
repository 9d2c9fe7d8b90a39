"""Settings that all tests of this base share: no GPU is looked for."""

from __future__ import annotations

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""
