"""What the cache of every base keeps beside its tree."""
