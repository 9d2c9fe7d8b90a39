"""The demo: servers side by side on the same requests."""
