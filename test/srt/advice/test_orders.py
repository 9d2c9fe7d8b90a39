"""The order of service: advised where it helps all, and named with its price where it does not."""

from __future__ import annotations

import itertools
import json
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
from sglang.srt.marconi_utils import cost_by_name
from sglang.srt.mem_cache.marconi.advice import command as product
from sglang.srt.mem_cache.marconi.advice.load.service import ServiceTimes
from sglang.srt.mem_cache.marconi.advice.order_text import order_text
from sglang.srt.mem_cache.marconi.advice.orders import (
    MOST_WAIT,
    LoadedServer,
    OrderAdvice,
    advise_order,
    arrived,
)
from sglang.srt.mem_cache.marconi.advice.recording import HashedRequest, with_sessions
from sglang.srt.mem_cache.marconi.advice.replay import STOCK, shadow_of
from sglang.srt.mem_cache.marconi.tuning.block_hashes import BlockHasher

MODEL = "Qwen3-Next-80B-A3B-Instruct"
COST = cost_by_name(MODEL)
BLOCK = 64
#: A document of so many blocks, of which the memory holds about five.
DOCUMENT, GIB = 60, 1.25
#: One such takes four seconds.
TFLOPS = float(COST.flops(0, DOCUMENT * BLOCK)) / 4 / 1e12
SERVER = LoadedServer(ServiceTimes(TFLOPS * 1e12, 0.0), running=1)


def request(at: float, session: str | None, ids: list[int], **more: float) -> HashedRequest:
    hashes = array("Q", BlockHasher(1).extend(0, 0, ids).tobytes())
    return HashedRequest(
        BLOCK * len(ids) + 1, hashes, array("Q"), None, 1, session, 1000 * at, **more
    )


def asked(document: int, question: int, blocks: int) -> list[int]:
    """A document; with a question other than 0, and that."""
    begin = 10_000 * document
    text = list(range(begin, begin + DOCUMENT))
    return text + [begin + 100 * question + i for i in range(blocks if question else 0)]


def burst() -> list[HashedRequest]:
    """Twelve documents are asked about six times each, in turn and at once; then comes rest."""
    pairs = itertools.product(range(6), range(12))
    made = [
        request(place / 1000, f"{place}", asked(document, question, 1))
        for place, (question, document) in enumerate(pairs)
    ]
    return [*made, request(10_000, "late", asked(99, 0, 0))]


def crowd() -> list[HashedRequest]:
    """Eight sessions ask about their document at once, again and again; one more asks once."""
    pairs = itertools.product(range(40), range(8))
    made = [
        request(place / 1000, f"{document}", asked(document, question, 4))
        for place, (question, document) in enumerate(pairs)
    ]
    made.insert(20, request(made[19].timestamp_ms / 1000, "alone", asked(50, 0, 0)))
    return [*made, request(20_000, "late", asked(99, 0, 0))]


def advice_on(requests: list[HashedRequest], server: LoadedServer = SERVER) -> OrderAdvice:
    def empty():
        return shadow_of(STOCK, 0.9, COST, GIB * 2**30, BLOCK)

    return advise_order(arrived(requests, 1000), COST, empty, BLOCK, server)


def words(advice: OrderAdvice) -> str:
    return order_text("stock LRU", advice, SERVER)


def test_an_order_that_shortens_all_waits_is_advised():
    advice = advice_on(burst())
    fcfs, lpm = advice.outcomes["fcfs"], advice.outcomes["lpm"]
    assert advice.advised == "lpm"
    assert fcfs.saved < 0.05 < 0.7 < lpm.saved
    assert lpm.ttft_mean < 0.5 * fcfs.ttft_mean and lpm.longest_wait < fcfs.longest_wait
    assert lpm.passed_over.requests == 0
    assert "Serve in the order lpm: mean TTFT" in words(advice)
    # The last of a queue of 72 documents of four seconds each waits for 71 of them.
    assert fcfs.longest_wait == pytest.approx(71 * 4, rel=0.03)


def test_an_order_that_starves_is_named_with_its_price_and_not_advised():
    advice = advice_on(crowd())
    fcfs, lpm = advice.outcomes["fcfs"], advice.outcomes["lpm"]
    assert advice.advised == "hrrn", "who waits long goes first in the end"
    assert advice.costly == ("lpm", "shortest-prefill-first")
    assert lpm.ttft_mean < 0.2 * fcfs.ttft_mean
    assert lpm.longest_wait > 2 * MOST_WAIT * fcfs.longest_wait
    late = lpm.passed_over
    assert late.requests == late.sessions == late.begin == 6
    assert late.computed == DOCUMENT * BLOCK + 1
    said = words(advice)
    assert "lpm is not advised, for some wait too long" in said
    assert "6 requests, of them 6 at the start of a session" in said


def test_a_server_that_falls_behind_is_told_so_and_no_order():
    advice = advice_on(crowd()[:-1])
    assert not any(one.keeps_up for one in advice.outcomes.values())
    assert advice.advised == "fcfs" and "hrrn" in advice.costly
    said = words(advice)
    assert "fcfs*" in said and "the server cannot keep up" in said
    assert "Leave the order at fcfs" in said
    assert "hrrn is not advised, for the server cannot keep up:" in said


def test_no_order_is_advised_where_nobody_waits():
    calm = [replace(one, timestamp_ms=1e6 * place) for place, one in enumerate(burst())]
    advice = advice_on(calm)
    assert advice.advised == "fcfs" and not advice.costly
    assert "No order takes 10 % off" in words(advice)


def test_only_the_first_requests_are_served_by_arrival():
    late_first = [*burst()[10:], *burst()[:10], replace(burst()[0], timestamp_ms=float("nan"))]
    sent = arrived(late_first, 20)
    assert [one.timestamp_ms for one in sent] == [one.timestamp_ms for one in burst()[:20]]


def test_a_request_goes_on_from_the_one_whose_blocks_it_begins_with():
    def turn(ids: list[int], answer: list[int]) -> HashedRequest:
        hashes = array("Q", BlockHasher(1).extend(0, 0, ids + answer).tobytes())
        return HashedRequest(BLOCK * len(ids), hashes[: len(ids)], hashes[len(ids) :])

    system = [1, 2, 3]
    found = with_sessions(
        [
            turn([*system, 10], [11]),
            turn([*system, 20], [21]),
            turn([*system, 10, 11, 12], [13]),
            turn([*system, 10, 11, 14], []),
            turn([*system, 10, 11, 12, 13, 15], []),
            replace(turn(system, []), session="given"),
            turn(system, []),
            turn(system, []),
            turn(system, []),
        ]
    )
    names = [one.session for one in found]
    first, second = names[:2]
    assert names[2] == names[4] == first != second
    assert names[3] not in (first, second), "another has gone on from there already"
    assert names[5] == "given"
    assert len(set(names[6:])) == 2, "prompts alone that all share are no session"


def recording(path: Path, requests: list[HashedRequest], *, arrivals: bool = True) -> Path:
    lines = [
        {
            "timestamp": 1_700_000_000_000 + round(one.timestamp_ms),
            **({"waited_ms": 2500} if arrivals else {}),
            "input_length": one.input_length,
            "output_length": 1,
            "hash_ids": [hash >> 2 for hash in one.prompt_ids],
            "output_hash_ids": [],
            "block_tokens": BLOCK,
        }
        for one in requests
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def ask(tmp_path, capsys):
    def asked(requests: list[HashedRequest], *words: str, arrivals: bool = True) -> str:
        path = recording(tmp_path / "requests.jsonl", requests, arrivals=arrivals)
        options = ["--recording", str(path), "--model", MODEL, "--memory-gib", str(GIB)]
        assert product.main([*options, "--policy", STOCK, "--ratios", "0.9", *words]) == 0
        return capsys.readouterr().out

    return asked


def test_the_launch_command_has_the_order(ask):
    speed = ("--tflops", str(TFLOPS), "--running", "1", "--decode-ms-per-token", "0")
    printed = ask(burst(), *speed)
    assert "73 requests that arrive in 10000 s, 1 at a time" in printed
    assert "recorded, first chunk" in printed and " 2.50 " in printed
    assert "--mamba-full-memory-ratio 0.9 --schedule-policy lpm\n" in printed
    found = json.loads(ask(burst(), *speed, "--load-requests", "72", "--json"))
    assert "--schedule-policy" not in found["command"], "without the rest after it, it falls behind"
    orders = found["orders"]["stock LRU with ratio 0.9"]
    assert orders["requests"] == 72 and orders["recorded"] == [2.5, 2.5, 2.5]
    assert orders["costly"][0] == "lpm"


def test_it_says_what_it_needs_to_compare_orders(ask):
    for words, arrivals, needed in (
        ((), True, "give --tflops"),
        (("--tflops", "5"), True, "--running"),
        (("--tflops", "5", "--running", "1"), False, "a recording with arrivals"),
    ):
        printed = ask(burst(), *words, arrivals=arrivals)
        assert needed in printed and "TTFT" not in printed
        found = json.loads(ask(burst(), *words, "--json", arrivals=arrivals))
        assert found["orders"] == {} and needed in found["orders_left_out"]
