"""Launches that operators make, scaled to a CPU, each served by stock SGLang and by policy 3."""
