"""The lab's shadow engine: static and elastic rows, and what it refuses."""

from __future__ import annotations

import json
import random
import statistics
from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab.costs import load_cost
from lab.hints import hinted
from lab.run import check_spec, policy_context, simulate
from lab.shadow_world import shadow_cache
from lab.spec import HostSpec, RunSpec
from policies import PolicyContext
from sglang.srt.mem_cache.marconi.tuning.hosted_cache import WRITE_POLICIES
from speed import staircase as staircase_length

MODEL = "Qwen3-Next-80B-A3B-Instruct"


#: How far apart what two engines save may lie: most policies save the same to the last digit.
CLOSE = 0.005


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """Forty sessions of twelve turns, each sending back its history; each round in another order.

    In one and the same order they would be a cycle, on which LRU saves nothing and one hit more or
    less sends a policy that adapts another way.
    """
    return [write_sessions(tmp_path_factory.mktemp("shadow"), seed) for seed in range(3)]


@pytest.fixture(scope="module")
def trace(traces):
    return traces[0]


def write_sessions(directory: Path, seed: int) -> str:
    rng = random.Random(seed)
    path = directory / "sessions.jsonl"
    with path.open("w") as file:
        for turn in range(12):
            for place, session in enumerate(rng.sample(range(40), 40)):
                ids = [session * 1000 + i for i in range(20 + 8 * turn)]
                record = {
                    "timestamp": (turn * 40 + place) * 100,
                    "session_id": str(session),
                    "input_length": 64 * len(ids),
                    "output_length": 4 * 64,
                    "hash_ids": ids,
                    "output_hash_ids": [ids[-1] + i for i in range(1, 5)],
                }
                file.write(json.dumps(record) + "\n")
    return str(path)


def spec(trace: str, **changes) -> RunSpec:
    fields = {"policy": "lru", "kv_tokens": 120_000, "state_slots": 60, "engine": "shadow"}
    return RunSpec(trace=trace, model=MODEL, **{**fields, **changes})


def test_rows_have_the_keys_of_the_real_lab(trace):
    row = simulate(spec(trace))
    real = simulate(spec(trace, engine="sglang"))
    assert row.keys() == real.keys()
    assert row["token_hit_rate_bound"] == pytest.approx(real["token_hit_rate_bound"])
    assert row["flops_saved"] == pytest.approx(real["flops_saved"], abs=CLOSE)
    assert row["run"] != real["run"]


def test_the_bound_is_found_only_where_it_is_asked_for(trace):
    row, bare = simulate(spec(trace)), simulate(spec(trace, ledger=False))
    assert bare["token_hit_rate_bound"] is None
    differ = {"run", "seconds", "token_hit_rate_bound"}
    assert {k: v for k, v in row.items() if k not in differ} == {
        k: v for k, v in bare.items() if k not in differ
    }


def test_a_weight_that_the_server_tunes_is_refused(trace):
    with pytest.raises(ValueError, match=r"'server:2', whose weight .* as server:2:0\.5"):
        check_spec(spec(trace, policy="server:2"))


@pytest.mark.parametrize(
    "changes", [{"policy": "cap:1"}, {"admission": "judicious"}], ids=["cap", "admission"]
)
def test_the_path_cap_and_the_admission_are_those_of_the_real_lab(trace, changes):
    changes = {"state_slots": 100, **changes}
    row, real = (simulate(spec(trace, engine=engine, **changes)) for engine in ("shadow", "sglang"))
    assert row["flops_saved"] == pytest.approx(real["flops_saved"], abs=CLOSE)
    plain = simulate(spec(trace, state_slots=100))
    assert row["flops_saved"] != plain["flops_saved"]


@pytest.mark.parametrize("write_policy", WRITE_POLICIES)
@pytest.mark.parametrize("policy", ["lru", "server:2:0.5", "server:3"])
def test_a_host_tier_gives_back_what_that_of_the_real_lab_does(trace, policy, write_policy):
    changes = {"policy": policy, "host": HostSpec(2, write_policy), "kv_tokens": 60_000}
    row, real = (simulate(spec(trace, engine=engine, **changes)) for engine in ("shadow", "sglang"))
    alone = simulate(spec(trace, policy=policy, kv_tokens=60_000))
    assert real["fallbacks_to_lru"] == 0
    assert row["seconds_saved"] > alone["seconds_saved"] + 0.05
    if policy != "server:3" and write_policy != "write_through_selective":
        for name in ("token_hit_rate", "loaded_tokens", "copied_bytes"):
            assert row[name] == real[name], name
    assert row["seconds_saved"] == pytest.approx(real["seconds_saved"], abs=4 * CLOSE)


def test_one_budget_saves_more_than_a_split_that_wastes_states(trace):
    saved = {
        (memory, policy): simulate(
            spec(trace, memory=memory, policy=policy, kv_tokens=60_000, state_slots=200)
        )["flops_saved"]
        for memory in ("static", "elastic")
        for policy in ("lru", "superseded", "value")
    }
    assert saved["elastic", "value"] > saved["static", "value"] + 0.1
    assert saved["elastic", "value"] >= saved["elastic", "lru"]


PUBLISHED = ("s3fifo", "arc:line", "lirs", "lhd:tail", "2q", "sieve:line")


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30)), max_size=60),
    st.sampled_from(["superseded", "value", *PUBLISHED]),
)
def test_the_budget_holds_at_every_moment(steps, policy):
    made = spec("", memory="elastic", policy=policy, kv_tokens=64 * 60, state_slots=5)
    cache = shadow_cache(made, context(made))
    histories: dict[int, int] = {}
    for id, (session, grow) in enumerate(steps):
        length = histories[session] = histories.get(session, 0) % 60 + grow
        hashes = array("Q", [session << 32 | i for i in range(length)])
        cache.begin(id, hashes, length)
        assert cache.free_bytes >= 0
        cache.end(id, array("Q", []))
        nodes = cache.tree._nodes.values()
        used = sum(len(n.hashes) for n in nodes) * cache.block_bytes
        used += sum(n.has_state for n in nodes) * cache.state_bytes
        assert cache.free_bytes == pytest.approx(cache.budget - used)
        cache.policy.victim(next(iter(cache.policy.pools)), cache.tree.now)


def context(made: RunSpec) -> PolicyContext:
    return policy_context(made, load_cost(MODEL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "paper", "memory": "elastic"}, "--memory is elastic but --engine is paper"),
        ({"memory": "elastic", "policy": "gdsf"}, "allowed with --memory elastic are"),
        ({"memory": "elastic", "policy": "marconi:1"}, "allowed with --memory elastic are"),
        ({"policy": "slru"}, "it needs --engine sglang"),
        ({"schedule": "lpm", "concurrency": 2, "policy": "clairvoyant"}, "allowed with it are"),
        ({"concurrency": 0}, "--running is 0; allowed is 1 or more"),
    ],
)
def test_what_it_does_not_simulate_is_refused(trace, changes, message):
    with pytest.raises(ValueError, match=message):
        check_spec(spec(trace, **changes))


@pytest.mark.parametrize("policy", ["server:3", "clairvoyant", *PUBLISHED])
def test_real_unified_pools_save_what_the_shadow_says(traces, policy):
    made = {"memory": "elastic", "policy": policy, "kv_tokens": 60_000, "state_slots": 40}
    real = rows_as_on_the_shadow(traces, **made)
    assert all(row["fallbacks_to_lru"] == 0 for row in real)
    if policy not in PUBLISHED:
        assert all(any("state_only" in kind for kind in row["evictions"]) for row in real)


def rows_as_on_the_shadow(traces: list[str], *, policy: str, **changes) -> list[dict]:
    """The real lab's row of each trace, after a comparison with the shadow's."""
    shadow, real = (
        [simulate(spec(trace, engine=engine, policy=policy, **changes)) for trace in traces]
        for engine in ("shadow", "sglang")
    )
    saved = [[row["flops_saved"] for row in rows] for rows in (shadow, real)]
    assert saved[1] == pytest.approx(saved[0], abs=CLOSE)
    return real


@pytest.mark.parametrize("policy", ["clairvoyant", *PUBLISHED])
def test_policies_of_two_pools_save_on_the_shadow_what_they_save_on_the_real_tree(traces, policy):
    rows_as_on_the_shadow(traces, policy=policy)


def test_who_knows_the_trace_saves_most(trace):
    """And more in one memory than in two pools of the same bytes, on a trace that starves one."""
    pools = {"kv_tokens": 60_000, "state_slots": 200}
    saved = {
        (memory, policy): simulate(spec(trace, memory=memory, policy=policy, **pools))[
            "flops_saved"
        ]
        for memory in ("static", "elastic")
        for policy in ("clairvoyant", "superseded", "value", *PUBLISHED)
    }
    for (memory, policy), share in saved.items():
        assert share <= saved[memory, "clairvoyant"], (memory, policy)
    assert saved["elastic", "clairvoyant"] > saved["static", "clairvoyant"] + 0.1


@pytest.mark.parametrize(
    "without",
    ["no-learning", "no-history", "no-shifts", "no-returns", "no-openings", "no-cost", "state"],
)
def test_ablations_run(trace, without):
    assert simulate(spec(trace, policy=f"value:{without}"))["flops_saved"] > 0


def test_the_staircase_is_counted_at_every_decision(trace, capsys):
    assert (
        staircase_length.main(["--trace", trace, "--memory-gib", "4,1000", "--model", MODEL]) == 0
    )
    *_, small, ample = (
        line.strip("| ").split(" | ") for line in capsys.readouterr().out.split("\n|")
    )
    name, memory, decisions, candidates, mean, high, most = small
    assert (name, memory) == ("sessions", "4") and int(decisions.replace(",", "")) > 100
    assert 1 <= float(mean) <= float(high) + 1 and int(most) <= float(candidates) * 4
    assert float(mean) < float(candidates)
    assert ample[2].strip(" |") == "0", "nothing is evicted"


def test_a_staircase_needs_a_trace_that_is_there(capsys):
    arguments = ["--trace", "no-such.jsonl", "--memory-gib", "4", "--model", MODEL]
    assert staircase_length.main(arguments) == 1
    assert "no-such.jsonl" in capsys.readouterr().err


def test_hints_are_worth_as_much_to_the_shadow_as_to_the_cache_that_serves(traces):
    paths = [ended_sessions(path) for path in traces]

    def saved(engine: str, hints: str) -> float:
        changes = {"policy": "server:3", "engine": engine, "hints": hints}
        return statistics.mean(simulate(spec(path, **changes))["flops_saved"] for path in paths)

    shadow, real = saved("shadow", "true"), saved("sglang", "true")
    assert shadow == pytest.approx(real, abs=CLOSE)
    assert shadow > saved("shadow", "none") + 0.05


def ended_sessions(path: str) -> str:
    """The same trace where half of the sessions end after half of their turns."""
    source = Path(path)
    ended = source.with_name("ended.jsonl")
    lines = source.read_text().splitlines()
    kept = [
        line
        for turn, line in enumerate(lines)
        if turn < len(lines) // 2 or int(json.loads(line)["session_id"]) % 2
    ]
    ended.write_text("\n".join(kept) + "\n")
    return str(ended)


def test_true_hints_are_at_the_ends_of_sessions(trace):
    made = spec(ended_sessions(trace), hints="true")
    said = [(int(r.session), r.hint) for r in hinted(made.requests(), made)]
    ends = {session: place for place, (session, _) in enumerate(said)}
    assert {place for place, (_, hint) in enumerate(said) if hint == "last"} == set(ends.values())


def test_hints_that_are_wrong_half_of_the_time_say_nothing(trace):
    made = spec(trace, hints="wrong:0.5")
    hints = [request.hint for request in hinted(made.requests(), made)]
    assert 0.4 < hints.count("last") / len(hints) < 0.6
    other = spec(trace, hints="wrong:0.5:1")
    assert [request.hint for request in hinted(other.requests(), other)] != hints
    opposite = spec(trace, hints="wrong:1")
    true = [r.hint for r in hinted(made.requests(), spec(trace, hints="true"))]
    wrong = [request.hint for request in hinted(made.requests(), opposite)]
    assert all(one != other for one, other in zip(wrong, true, strict=True))


def test_the_trace_s_own_hints_are_taken_unless_none_are_asked_for(trace, tmp_path):
    path = tmp_path / "hinted.jsonl"
    lines = [json.loads(line) | {"hint": "soon"} for line in Path(trace).read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for hints, found in (("trace", {"soon"}), ("none", {None})):
        made = spec(str(path), hints=hints)
        assert {request.hint for request in hinted(made.requests(), made)} == found


@pytest.mark.parametrize("hints", ["wrong", "wrong:2", "wrong:x", "wrong:0.5:x", "right"])
def test_other_hints_are_refused(trace, hints):
    with pytest.raises(ValueError, match="allowed are trace, none, true, and wrong:SHARE"):
        check_spec(spec(trace, hints=hints))


def test_the_paper_s_engine_knows_no_hints(trace):
    with pytest.raises(ValueError, match="allowed with it are --engine sglang and shadow"):
        check_spec(spec(trace, engine="paper", policy="marconi", hints="true"))
