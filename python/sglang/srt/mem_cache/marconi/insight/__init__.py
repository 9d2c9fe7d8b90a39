"""What the cache did, what that cost, and why a hit was lost."""
