"""Traces made by code: sessions of several shapes that arrive as the paper's do; all seeded."""

from traces.generator.shapes import SHAPES, Sizes
from traces.generator.workload import generate, parse_mix

__all__ = ["SHAPES", "Sizes", "generate", "parse_mix"]
