"""NIXL moves, on a CPU, what SGLang tells it is a GPU's memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("sglang_cpu_reference")
from sglang.srt import runtime_context
from sglang_cpu_reference import transfer

GPU = "VRAM"


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says in which mode, and by what, SGLang serves; takes back what ``prepare`` does then."""
    monkeypatch.setattr(torch.cuda, "Event", torch.cuda.Event)

    def serve(mode: str, backend: str) -> None:
        served = SimpleNamespace(disaggregation_mode=mode, disaggregation_transfer_backend=backend)
        monkeypatch.setattr(runtime_context, "get_disagg", lambda: served)
        transfer.prepare()

    return serve


@pytest.mark.parametrize(("mode", "backend"), [("null", "nixl"), ("prefill", "mooncake")])
def test_other_servers_are_left_alone(serving: Any, mode: str, backend: str):
    before = torch.cuda.Event
    serving(mode, backend)
    assert torch.cuda.Event is before


def test_named_blocks_of_a_pool_reach_the_other_agents_pool_and_no_other(serving: Any):
    serving("prefill", "nixl")
    from nixl._api import nixl_agent, nixl_agent_config

    prefill, decode = (nixl_agent(name, nixl_agent_config()) for name in ("prefill", "decode"))
    source, target = torch.arange(1000.0), torch.zeros(1000)
    for agent, pool in ((prefill, source), (decode, target)):
        agent.register_memory([(pool.data_ptr(), pool.nbytes, 0, "")], GPU)
    peer = prefill.add_remote_agent(decode.get_agent_metadata())
    sent, got = (
        prefill.get_xfer_descs([(pool.data_ptr() + 400, 800, 0)], GPU) for pool in (source, target)
    )
    handle = prefill.initialize_xfer("WRITE", sent, got, peer, b"sent")
    state = prefill.transfer(handle)
    while state == "PROC":
        state = prefill.check_xfer_state(handle)
        decode.get_new_notifs()
    assert state == "DONE"
    assert torch.equal(target[100:300], source[100:300])
    assert not target[:100].any() and not target[300:].any()
