"""FLOPs and bytes of a cached prefix, built layer by layer from a model's config.

``layers`` prices one layer, ``families`` put a model's layers together from its config,
``architectures`` says which family an architecture belongs to, ``model`` answers what a prefix
saves, ``pools`` reads the bytes off a running server, and ``known_models`` holds the sizes of
published models. The public face is ``sglang.srt.marconi_utils``.
"""
