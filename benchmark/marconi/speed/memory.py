"""Bytes a cached prefix that Marconi keeps on the host beside SGLang's tree, by part.

    python benchmark/marconi/tree_memory.py

A cache under policy 3 on the Rust tree core holds conversations of four turns, 64 tokens a turn,
a state at the end of each. The first column is that; for the second as many turns of new
conversations came, and as many states and tokens were evicted, so that ghosts and what policy 3
remembers of evicted states are there too. Bytes are divided by the nodes that are in the tree then.

Counted is what Python allocated and still holds (``tracemalloc``), by the file that allocated it.
Token ids are apart: the mirror has 8 bytes for each. *All else* is what the cache holds beyond that
and beyond a stock cache on the Rust core that did the same. What Rust and torch allocate is not
counted: it is the same in both.
"""

from __future__ import annotations

import argparse
import gc
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from lab.cpu_cache import server_context
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.mamba_radix_cache import MambaRadixCache

from speed.tree import TURN_TOKENS, TURNS, VARIANTS, Filled

#: By what the path of a file under ``mem_cache`` begins with.
PARTS = {
    "mirror of the Rust core": "mamba_radix/rust_core/",
    "view": "marconi/attach/",
    "policy 3": "marconi/eviction/",
    "lookups and ghosts": "marconi/insight/",
}
TOKEN_IDS, ELSE, ALL = "token ids", "all else", "all but token ids"
TOKEN_BYTES = 8

#: Bytes by part, and the nodes in the tree.
Held = tuple[Counter[str], int]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--files", action="store_true", help="a row a line of code too")
    options = parser.parse_args(argv)
    if options.nodes < TURNS:
        parser.error(f"--nodes is {options.nodes}; allowed is {TURNS} or more")
    torch.set_num_threads(1)
    with server_context(chunk=TURN_TOKENS):
        stock = list(measured("rust", options.nodes))
        ours = list(measured("3", options.nodes, by_line=options.files))
    print("| bytes a node | filled | turned over |")
    print("|---|---|---|")
    columns = [compared(mine, theirs) for mine, theirs in zip(ours, stock, strict=True)]
    for part in sorted(columns[1], key=lambda part: (part == TOKEN_IDS, -columns[1][part])):
        print(f"| {part} | {columns[0][part]:,.0f} | {columns[1][part]:,.0f} |")


def measured(variant: str, nodes: int, *, by_line: bool = False) -> Iterator[Held]:
    """What one cache holds when it is filled, and when all was turned over once."""
    gc.collect()
    tracemalloc.start()
    try:
        filled = Filled(nodes, (TURN_TOKENS,) * TURNS, nodes * TURN_TOKENS, VARIANTS[variant])
        yield held(filled, nodes, by_line=by_line)
        conversation = TURNS * TURN_TOKENS
        for _ in range(nodes // TURNS):
            filled.session(conversation)
            filled.cache.cache.evict(EvictParams(num_tokens=conversation, mamba_num=TURNS))
        yield held(filled, nodes, by_line=by_line)
    finally:
        tracemalloc.stop()


def held(filled: Filled, nodes: int, *, by_line: bool) -> Held:
    cache = filled.cache.cache
    found: Counter[str] = Counter()
    if isinstance(cache, MambaRadixCache):
        cache.view.refresh()
        mirror = cache.tree_core.mirror
        nodes = len(mirror.nodes)
        found[TOKEN_IDS] = TOKEN_BYTES * sum(len(node.key) for node in mirror.nodes.values())
    gc.collect()
    snapshot = tracemalloc.take_snapshot()
    for statistic in snapshot.statistics("lineno" if by_line else "filename"):
        frame = statistic.traceback[0]
        _, _, path = frame.filename.rpartition("/mem_cache/")
        part = next((part for part, start in PARTS.items() if path.startswith(start)), ELSE)
        found[part] += statistic.size
        if by_line and part is not ELSE:
            found[f"{path}:{frame.lineno}"] += statistic.size
    found[next(iter(PARTS))] -= found[TOKEN_IDS]
    return found, nodes


def compared(ours: Held, stock: Held) -> Counter[str]:
    """Bytes a node by part, of ours alone."""
    bytes, nodes = ours
    bytes = Counter({**bytes, ELSE: bytes[ELSE] - stock[0][ELSE]})
    bytes[ALL] = sum(bytes[part] for part in (*PARTS, ELSE))
    return Counter({part: round(size / nodes) for part, size in bytes.items()})


if __name__ == "__main__":
    main()
