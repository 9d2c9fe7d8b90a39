"""Over SGLang's Python tree core: its events, its eviction walks, its keys."""
