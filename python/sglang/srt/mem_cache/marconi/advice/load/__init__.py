"""A server under load, simulated: who comes when, who goes first, and how long each waits."""
