"""Marconi's decisions: costs, scores, policies and counters, independent of any SGLang base."""
