"""Runs the master of a Mooncake store, in which servers of a launch keep evicted KV over TCP."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from live.servers import free_port, run_in_group

SEGMENT_BYTES = 256 << 20


@contextmanager
def store(folder: Path) -> Iterator[Mapping[str, str]]:
    """Start it, its log in ``folder``; the variables with which a server's store finds it."""
    port = free_port()
    variables = {
        "LD_LIBRARY_PATH": os.pathsep.join(_libraries(folder)),
        "MOONCAKE_MASTER": f"127.0.0.1:{port}",
        "MOONCAKE_PROTOCOL": "tcp",
        "MOONCAKE_GLOBAL_SEGMENT_SIZE": str(SEGMENT_BYTES),
    }
    command = (
        *("env", f"LD_LIBRARY_PATH={variables['LD_LIBRARY_PATH']}"),
        *(str(Path(sys.executable).parent / "mooncake_master"), "--rpc_port", str(port)),
        *("--metrics_port", str(free_port())),
    )
    with run_in_group(command, folder / "mooncake.log"):
        yield variables


def _libraries(folder: Path) -> list[str]:
    """Where the loader finds what Mooncake's wheel does not bring.

    It is linked with the system's library of InfiniBand, whatever it transfers over, and a machine
    without InfiniBand has none. NIXL's wheel brings one, under another name.
    """
    spec = importlib.util.find_spec("nixl_cu13")
    assert spec and spec.origin
    libraries = Path(spec.origin).parents[1] / "nixl_cu13.libs"
    (folder / "libibverbs.so.1").symlink_to(next(libraries.glob("libibverbs-*")))
    return [str(folder), str(libraries)]
