"""Over SGLang's Rust tree core: its events read off its calls into a mirror of the tree."""
