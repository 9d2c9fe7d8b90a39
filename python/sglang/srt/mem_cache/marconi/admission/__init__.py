"""Who enters: which states of a request stay cached."""
