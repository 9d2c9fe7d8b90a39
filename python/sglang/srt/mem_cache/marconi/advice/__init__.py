"""What to set: split, policy and admission, from recorded requests."""
