"""Who goes: the policies, and what they search to find a victim."""
