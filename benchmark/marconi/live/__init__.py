"""Sends a trace to running servers, and reports what they hit and how fast they were."""
