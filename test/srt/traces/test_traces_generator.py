"""Generated traces: what each shape shares, arrival processes, and that seeds fix everything."""

from __future__ import annotations

import itertools
import statistics
import tracemalloc
from dataclasses import replace

import generate_trace
import pytest
from traces import Request, Timing, read_trace
from traces.generator import SHAPES, Sizes, generate, parse_mix
from traces.timing import interleave

SIZES = Sizes(groups=3, system=256, question=64, output=64, turns=12, observation=100, kept=3)


def shared(a: Request, b: Request) -> int:
    pairs = zip(a.prompt_ids, b.prompt_ids, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def of_shape(name: str, sessions: int = 20) -> list[Request]:
    return list(generate({name: 1}, sessions=sessions, sizes=SIZES))


def turns(requests: list[Request]) -> list[list[Request]]:
    by_session: dict[str | None, list[Request]] = {}
    for request in requests:
        by_session.setdefault(request.session, []).append(request)
    return list(by_session.values())


def test_shared_prefixes_are_the_groups_system_prompts():
    requests = of_shape("shared-prefix")
    assert {(r.input_length, r.output_length) for r in requests} == {(320, 64)}
    assert {shared(a, b) for a, b in itertools.combinations(requests, 2)} == {0, 4}
    assert len({r.prompt_ids[0] for r in requests}) == 3


def test_few_shot_prompts_share_their_examples_in_order():
    requests = of_shape("few-shot")
    for a, b in itertools.combinations(requests, 2):
        blocks = min(len(a.prompt_ids), len(b.prompt_ids)) - 1
        assert shared(a, b) in (0, blocks)
    assert len({r.input_length for r in requests}) > 4


def test_noise_shares_nothing():
    requests = of_shape("noise")
    assert len({id for r in requests for id in r.prompt_ids}) == 20 * 2


@pytest.mark.parametrize("name", ["chat", "agent"])
def test_each_prompt_extends_prompt_and_output_before_it(name):
    sessions = turns(of_shape(name))
    assert max(map(len, sessions)) > 5
    for session in sessions:
        for a, b in itertools.pairwise(session):
            assert b.prompt_ids[: len(a.prompt_ids + a.output_ids)] == a.prompt_ids + a.output_ids
            assert b.timestamp_ms > a.timestamp_ms


def test_an_eliding_agent_diverges_in_mid_history():
    for session in turns(of_shape("eliding-agent")):
        extends = [
            b.prompt_ids[: len(a.prompt_ids)] == a.prompt_ids
            for a, b in itertools.pairwise(session)
        ]
        # The first and the three newest observations stay: the fifth one elides the second.
        assert extends == [True] * 4 + [False] * 7
        a, b = session[4:6]
        assert shared(a, b) >= 4 + 1 + 1


def test_seeds_fix_everything_and_more_sessions_keep_the_first():
    mix = parse_mix("chat=2,agent,noise=0.5")
    once = list(generate(mix, sessions=12, sizes=SIZES, keep_tokens=True))
    assert once == list(generate(mix, sessions=12, sizes=SIZES, keep_tokens=True))
    other = list(generate(mix, sessions=12, sizes=SIZES, timing=Timing(seed=1)))
    assert not {id for r in other for id in r.prompt_ids} & {
        id for r in once for id in r.prompt_ids
    }
    bare = [replace(r, input_tokens=None, output_tokens=None) for r in once]
    names = {r.session for r in once}
    more = [r for r in generate(mix, sessions=30, sizes=SIZES) if r.session in names]
    assert more == bare


def test_arrivals_are_the_papers_processes():
    timing = Timing(sessions_per_second=4, response_seconds=2, seed=3)
    starts = list(itertools.islice(timing.starts_ms(), 4000))
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert statistics.mean(gaps) == pytest.approx(250, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(250, rel=0.1)
    assert timing.typing_ms(3) == 2000
    rng = timing.session_rng("x")
    answers = [timing.response_ms(rng) for _ in range(4000)]
    assert statistics.mean(answers) == pytest.approx(2000, rel=0.05)
    requests = of_shape("chat", 60)
    assert [r.timestamp_ms for r in requests] == sorted(r.timestamp_ms for r in requests)
    with pytest.raises(ValueError, match="sessions per second are 0"):
        Timing(sessions_per_second=0)


def test_sessions_start_seldom_every_other_while():
    timing = Timing(sessions_per_second=4, quiet_sessions_per_second=0.5, shift_after=1000)
    starts = [0.0, *itertools.islice(timing.starts_ms(), 3000)]
    means = [(starts[at + 1000] - starts[at]) / 1000 for at in (0, 1000, 2000)]
    assert means == pytest.approx([250, 2000, 250], rel=0.1)
    steady = list(itertools.islice(Timing(sessions_per_second=4).starts_ms(), 1000))
    assert starts[1:1001] == steady
    with pytest.raises(ValueError, match="quiet sessions per second are 0"):
        Timing(quiet_sessions_per_second=0)
    with pytest.raises(ValueError, match="changes after 0 sessions"):
        Timing(shift_after=0)


def test_only_running_sessions_are_held():
    def one() -> list[Request]:
        return [Request(float(at), "s", 1, 0, (), ()) for at in range(3)]

    begun = 0

    def sessions():
        nonlocal begun
        for _ in range(1000):
            begun += 1
            yield one()

    ordered = interleave(sessions(), Timing())
    next(ordered)
    assert begun < 5
    tracemalloc.start()
    assert sum(1 for _ in ordered) == 2999
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_the_command_writes_what_the_reader_reads(tmp_path, capsys):
    flags = ["--sessions", "9", "--turns", "4", "--system", "200", "--seed", "5"]
    paths = [tmp_path / "a.jsonl.xz", tmp_path / "b.jsonl.zst", tmp_path / "c.jsonl.gz"]
    for path, to in zip(paths, ("blocks", "blocks", "marconi"), strict=True):
        generate_trace.main([str(path), "--to", to, *flags])
    a, b, c = (list(read_trace(path, errors="fail")) for path in paths)
    assert a == b == [replace(r, input_tokens=None, output_tokens=None) for r in c]
    assert f"{len(a)} requests of 9 sessions" in capsys.readouterr().err
    assert {(r.session or "").rpartition("-")[0] for r in a} <= set(SHAPES)
    with pytest.raises(SystemExit, match="shape 'best' is unknown; allowed are shared-prefix"):
        generate_trace.main([str(paths[0]), "--mix", "best"])
    with pytest.raises(SystemExit, match="turns is 0"):
        generate_trace.main([str(paths[0]), "--turns", "0"])


def test_the_command_makes_a_load_that_falls(tmp_path):
    path = tmp_path / "tide.jsonl"
    flags = ["--sessions-per-second", "4", "--quiet-sessions-per-second", "0.5"]
    generate_trace.main(
        [str(path), "--mix", "noise", "--sessions", "60", "--shift-after", "30", *flags]
    )
    starts = [one.timestamp_ms for one in read_trace(path, errors="fail")]
    assert starts[59] - starts[29] > 3 * (starts[29] - starts[0])
