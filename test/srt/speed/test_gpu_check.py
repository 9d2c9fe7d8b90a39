"""The GPU check on a CPU: its table, what it finds, and its GPU's way with a stand-in for the GPU.

No GPU is here. What only a GPU has is PyTorch's sync debug mode: the stand-in does to reads of CPU
tensors what that mode does to waits.
"""

from __future__ import annotations

import os
import re
import warnings
from contextlib import ExitStack

import pytest
import torch
import tree_harness  # noqa: F401, hides the GPU before SGLang is imported
from gpu import check, life
from gpu.host_reads import reads_noted
from gpu.meters import SYNCHRONIZED, CudaWaitCounts
from sglang.srt.mem_cache.mamba_radix_cache import MambaRadixCache
from sglang.srt.mem_cache.marconi.eviction.value import ValuePolicy

SMALL = ["--requests", "24", "--repeats", "1"]
OPERATIONS = ["match", "lock", "insert a chunk", "insert the end", "unlock", "release"]
OPERATIONS += ["evict KV", "evict states", "evict, view lost", "flush"]


def table(text: str) -> dict[tuple[str, str], list[str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:2] == "| "][1:]
    return {(cells[1], cells[0]): cells[2:] for cells in lines}


def on_cpu(*caches: str) -> int:
    return check.main(["--device", "cpu", *SMALL, "--caches", *(caches or check.OURS)])


@pytest.fixture
def reading_insert(monkeypatch):
    """Ours reads a slot's number at each insert."""
    insert = MambaRadixCache.insert

    def reading(self, params):
        int(params.value[0])
        return insert(self, params)

    monkeypatch.setattr(MambaRadixCache, "insert", reading)


class SyncDebugMode:
    """What ``torch.cuda.set_sync_debug_mode`` does, to reads of CPU tensors."""

    def __init__(self) -> None:
        self.mode = "default"
        self._open = ExitStack()

    def set(self, mode: str) -> None:
        self._open.close()
        self.mode = mode
        if mode != "default":
            self._open.enter_context(reads_noted(self._note))

    def _note(self) -> None:
        if self.mode == "error":
            raise RuntimeError(SYNCHRONIZED)
        warnings.warn(f"{SYNCHRONIZED} (Triggered internally at …)", stacklevel=1)


@pytest.fixture
def stand_in(monkeypatch):
    debug = SyncDebugMode()
    for name in ("set_device", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a stand-in")
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", debug.set)
    ones, lived = torch.ones, life.lived
    monkeypatch.setattr(torch, "ones", lambda *sizes, device, **kw: ones(*sizes, **kw))
    monkeypatch.setattr(
        life, "lived", lambda arguments, device, *rest: lived(arguments, torch.device("cpu"), *rest)
    )
    yield debug
    assert debug.mode == "default"


def test_a_row_for_every_operation_of_every_cache(capsys):
    assert on_cpu() == 0
    out = capsys.readouterr().out
    assert "No operation of ours waits more often" in out
    rows = table(out)
    for cache in check.OURS:
        for operation in OPERATIONS:
            *waits, stock, ours, ratio = rows[cache, operation]
            assert all(re.fullmatch(r"0 of \d+", wait) and wait != "0 of 0" for wait in waits)
            assert all(re.fullmatch(r"[\d,]+\.\d", time) for time in (stock, ours))
            assert re.fullmatch(r"\d+\.\d\d", ratio)
        assert rows[cache, "counters"][:2] == ["", "0 of 1"]
    adopted = {cache for cache, operation in rows if operation == "adopt a weight"}
    assert adopted == {name for name in check.OURS if "tuned" in name}


def test_a_read_of_ours_is_found(capsys, reading_insert):
    assert on_cpu("policy 3, Rust core", "policy 2, Python core") == 1
    out = capsys.readouterr().out
    for cache in ("policy 3, Rust core", "policy 2, Python core"):
        stock, ours, *_ = table(out)[cache, "insert a chunk"]
        assert stock.startswith("0 of ") and int(ours.split(" of ")[0]) > 0
        assert f"PROBLEM: {cache}, insert a chunk: 1 waits a call, 0 of stock" in out
        assert table(out)[cache, "match"][1].startswith("0 of ")
    assert "No operation of ours" not in out


def test_a_cache_that_fails_is_named_and_the_others_go_on(capsys, monkeypatch):
    monkeypatch.setattr(ValuePolicy, "victim", lambda *_: 1 / 0)
    assert on_cpu("policy 2, Rust core", "policy 3, Rust core") == 1
    out = capsys.readouterr().out
    assert "PROBLEM: policy 3, Rust core caught ZeroDivisionError" in out
    assert "PROBLEM: policy 2" not in out and ("policy 2, Rust core", "match") in table(out)


def test_without_a_gpu_the_option_is_named(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ([], ["--device", "cuda:1"]):
        with pytest.raises(SystemExit):
            check.main(device)
        assert "--device cpu counts host reads instead" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        check.main(["--device", "tpu"])
    assert "allowed are cuda, cuda:N and cpu" in capsys.readouterr().err


def test_the_way_on_a_gpu(capsys, stand_in):
    caches = (
        "policy 3, Rust core",
        "policy 2 tuned, recorded, Python core",
        "policy 3, one memory",
    )
    assert check.main([*SMALL, "--caches", *caches]) == 0
    out = capsys.readouterr().out
    assert out.startswith("a stand-in, PyTorch")
    assert {cache for cache, _ in table(out)} == set(caches)


def test_a_wait_on_a_gpu_is_found(capsys, stand_in, reading_insert):
    assert check.main([*SMALL, "--caches", "policy 3, Rust core"]) == 1
    assert "insert a chunk: 1 waits a call, 0 of stock" in capsys.readouterr().out


def test_a_wait_that_ours_would_hide_is_an_error(capsys, stand_in, monkeypatch):
    victim = ValuePolicy.victim

    def reading(self, *arguments):
        if stand_in.mode == "error":
            int(torch.zeros(1))
        return victim(self, *arguments)

    monkeypatch.setattr(ValuePolicy, "victim", reading)
    assert check.main([*SMALL, "--caches", "policy 3, Python core"]) == 1
    out = capsys.readouterr().out
    assert f"PROBLEM: policy 3, Python core caught RuntimeError('{SYNCHRONIZED}')" in out


def test_a_wait_of_an_extension_is_printed_and_counted(stand_in, capfd):
    counts = CudaWaitCounts()
    with counts.measured("evict"):
        os.write(2, f"[W] Warning: {SYNCHRONIZED} (function f)\nsomething else\n".encode())
    assert counts.waits["evict"] == 1
    assert capfd.readouterr().err == "something else\n"
    with pytest.warns(UserWarning, match="of another kind"), counts.measured("evict"):
        warnings.warn("of another kind", stacklevel=1)
    assert counts.waits["evict"] == 1
