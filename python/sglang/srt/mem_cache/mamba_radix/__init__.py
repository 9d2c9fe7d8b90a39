"""MambaRadixCache on SGLang 0.5.23, piece by piece: SGLang is touched here and nowhere else."""
