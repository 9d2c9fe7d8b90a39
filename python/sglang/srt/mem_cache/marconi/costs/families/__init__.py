"""One module for each family of hybrids: what a model is made of, read from its config."""
