"""Traces as they are published: read, converted and replayed, each shape made by code."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import advise
import convert_trace
import pytest
import simulate
from lab.run import simulate as run
from lab.spec import RunSpec
from published import LONG, PUBLISHED, Published, document, kv_session, lines
from sglang.srt.mem_cache.marconi.advice import command as product
from traces import FORMATS, Request, TraceError, read_trace
from traces.encoder import CHUNK
from traces.formats import table
from traces_harness import TEMPLATE, save_byte_tokenizer

DOCS = Path(__file__).resolve().parents[3] / "docs" / "benchmarks" / "traces.md"
MODEL = "Qwen3-Next-80B-A3B-Instruct"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    return save_byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), TEMPLATE)


def each(shape: Published) -> str:
    return shape.write.__name__


def read(path: Path, tokenizer: Any, **more) -> tuple[list[Request], list[str], list[str]]:
    """Requests, what was skipped, and what was noted."""
    errors: list[TraceError] = []
    notes: list[str] = []
    reader = read_trace(
        path, tokenizer=tokenizer, on_error=errors.append, on_note=notes.append, **more
    )
    return list(reader), list(map(str, errors)), notes


@pytest.mark.parametrize("shape", PUBLISHED, ids=each)
def test_a_published_shape_is_recognised_and_read(shape, tmp_path, tokenizer):
    path = shape.write(tmp_path)
    reader = read_trace(path, tokenizer=tokenizer)
    assert (reader.format, reader.block) == (shape.format, shape.block)
    requests, errors, notes = read(path, tokenizer)
    assert errors == notes == []
    assert Counter(request.session for request in requests) == shape.sessions
    assert all(a.timestamp_ms <= b.timestamp_ms for a, b in itertools.pairwise(requests))


def reuse(requests: list[Request], block: int) -> float:
    """Share of prompt tokens in whole blocks whose whole prefix a request before them had."""
    seen: set[tuple[int, ...]] = set()
    found = 0
    for request in requests:
        whole = (request.input_length - 1) // block
        depths = (at for at in range(1, whole + 1) if request.prompt_ids[:at] not in seen)
        found += (next(depths, whole + 1) - 1) * block
        held = (*request.prompt_ids, *request.output_ids)
        # The last token of an answer never comes back.
        computed = (request.input_length + max(request.output_length, 1) - 1) // block
        seen |= {held[:at] for at in range(1, min(len(held), computed) + 1)}
    return found / sum(request.input_length for request in requests)


@pytest.mark.parametrize("shape", PUBLISHED, ids=each)
def test_a_published_shape_is_converted_and_replayed(shape, tmp_path, tokenizer):
    path = shape.write(tmp_path)
    out = tmp_path.with_suffix(".jsonl.xz")
    convert_trace.main([str(path), str(out), "--to", "blocks", "--tokenizer", tokenizer])
    requests, _, _ = read(path, tokenizer)
    converted, errors, _ = read(out, tokenizer, format="blocks", block=shape.block)
    assert errors == [] and len(converted) == len(requests)
    for mine, original in zip(converted, requests, strict=True):
        assert mine.timestamp_ms == original.timestamp_ms
        assert (mine.session, mine.prompt_ids) == (original.session, original.prompt_ids)
        assert (mine.input_length, mine.output_length) == (
            original.input_length,
            original.output_length,
        )
    spec = RunSpec(
        trace=str(path),
        policy="lru",
        model=MODEL,
        kv_tokens=1 << 24,
        state_slots=4096,
        engine="shadow",
        block=shape.block,
        tokenizer=tokenizer,
    )
    row = run(spec)
    assert (row["requests"], row["corrupt_lines"]) == (len(requests), 0)
    assert row["token_hit_rate_bound"] == pytest.approx(reuse(requests, shape.block))
    assert 0 < row["token_hit_rate_bound"] < 1


def by_session(requests: list[Request]) -> dict[str | None, list[Request]]:
    found: dict[str | None, list[Request]] = {}
    for request in requests:
        found.setdefault(request.session, []).append(request)
    return found


def shape_of(name: str) -> Published:
    return next(shape for shape in PUBLISHED if each(shape) == name)


def test_bailian_has_seconds_and_chats_that_share_their_first(tmp_path, tokenizer):
    requests, _, _ = read(shape_of("bailian").write(tmp_path), tokenizer)
    assert [r.timestamp_ms for r in requests] == [0, 1500, 61_114, 62_250, 90_000]
    assert requests[0].prompt_ids == (0, 1) and requests[1].prompt_ids == (0, 9)
    # 41 tokens and 40 of an answer fill five blocks, of which the next prompt names three.
    assert requests[0].output_ids == (3, 4, 5)


def test_ids_of_two_sessions_differ_unless_their_scope_is_global(tmp_path, tokenizer):
    def prompts(scope: str) -> list[set[int]]:
        path = lines(tmp_path / "t.jsonl", [kv_session(name, 1, scope) for name in "ab"])
        requests, _, _ = read(path, tokenizer)
        return [
            {id for r in requests if str(r.session).startswith(name) for id in r.prompt_ids}
            for name in "ab"
        ]

    local, shared = prompts("local"), prompts("global")
    assert not local[0] & local[1] and len(local[0]) == len(local[1])
    assert {1, 2, 3, 4, 40, 41} <= shared[0] & shared[1]


@pytest.mark.parametrize("relative", [False, True])
def test_a_sub_agents_times_count_from_the_session(tmp_path, tokenizer, relative):
    path = document(tmp_path / "t.json", kv_session("s", 1, relative=relative))
    requests, _, _ = read(path, tokenizer)
    start = requests[0].timestamp_ms
    at = {
        session: [r.timestamp_ms - start for r in found]
        for session, found in by_session(requests).items()
    }
    assert at["s"] == [0, 60_000]
    assert at["s/agent_001"] == pytest.approx([21_000, 28_000])
    assert at["s/agent_001/agent_002"] == pytest.approx([25_500])
    inner = by_session(requests)["s/agent_001"][0]
    assert inner.prompt_ids[0] == requests[0].prompt_ids[0]
    # The main agent's next prompt shows the answer before it; 4 blocks of 300 tokens have an id.
    main = by_session(requests)["s"]
    assert main[0].output_ids == main[1].prompt_ids[2:3]
    assert len(set(main[1].prompt_ids)) == 4


def test_blocks_of_a_size_that_the_file_does_not_have_are_refused(tmp_path, tokenizer):
    path = document(tmp_path / "t.json", kv_session("s", 1))
    with pytest.raises(TraceError, match="block_size is 64, but blocks of 128 are read"):
        list(read_trace(path, block=128, errors="fail"))


def test_a_long_document_is_told_by_its_opening(tmp_path, tokenizer):
    session = kv_session("s", 1)
    session["requests"][0] |= {"in": 64 * 200_000, "hash_ids": list(range(1, 200_001))}
    requests, errors, _ = read(document(tmp_path / "t.json", session), tokenizer)
    assert len(requests) == 5 and not errors


def test_agents_keep_the_times_of_their_messages(tmp_path, tokenizer):
    requests, _, _ = read(shape_of("mini_swe_agent").write(tmp_path), tokenizer)
    for found in by_session(requests).values():
        gaps = [b.timestamp_ms - a.timestamp_ms for a, b in itertools.pairwise(found)]
        assert gaps == pytest.approx([20_000, 20_000], abs=0.01)
        for a, b in itertools.pairwise(found):
            held = (*a.input_tokens, *a.output_tokens)
            assert b.input_tokens[: len(held)] == held


@pytest.mark.parametrize(
    ("name", "seconds"), [("openhands", 30), ("openhands_output", 30), ("openhands_sdk", 20)]
)
def test_an_answer_of_several_calls_is_one_request(name, seconds, tmp_path, tokenizer):
    requests, _, _ = read(shape_of(name).write(tmp_path), tokenizer)
    for first, last in by_session(requests).values():
        held = (*first.input_tokens, *first.output_tokens)
        assert last.input_tokens[: len(held)] == held
        assert last.input_length >= len(held) + len(LONG)
        assert last.timestamp_ms - first.timestamp_ms == pytest.approx(seconds * 1000, abs=0.01)


def test_events_without_answers_are_refused(tmp_path, tokenizer):
    events = [
        {"id": 1, "source": "user", "action": "message", "args": {"content": "hello"}},
        {"id": 2, "source": "agent", "action": "run", "args": {"command": "ls"}},
    ]
    _, errors, _ = read(document(tmp_path / "trajectory.json", events), tokenizer)
    assert len(errors) == 1 and "read its completion logs instead" in errors[0]


def test_answers_that_aiperf_repeats_are_found_in_the_next_prompt(tmp_path, tokenizer):
    requests, _, _ = read(shape_of("aiperf_messages").write(tmp_path), tokenizer)
    first, second, _ = requests
    whole = (*first.prompt_ids, *first.output_ids)
    assert first.output_ids and second.prompt_ids[: len(whole)] == whole


def test_a_delay_counts_from_the_answer_before(tmp_path, tokenizer):
    requests, _, _ = read(shape_of("mooncake_sessions").write(tmp_path), tokenizer)
    first, second = by_session(requests)["a"]
    assert second.timestamp_ms - first.timestamp_ms > 500


# What concerns traces of any format.


def blocks(at: object, number: int = 0, **more: object) -> dict:
    record = {"timestamp": at, "input_length": 130, "output_length": 9, "hash_ids": [1, number]}
    return record | {"session_id": f"s{number}"} | more


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["1000", "2500.5"], [1000, 2500.5]),
        (["1970-01-01T00:00:01Z", "1970-01-01T02:00:02.5+02:00"], [1000, 2500]),
        (["1970-01-01 00:00:01", "1970-01-01T00:00:03"], [1000, 3000]),
    ],
)
def test_times_may_be_text(tmp_path, times, expected):
    path = lines(tmp_path / "t.jsonl", [blocks(at) for at in times])
    requests, errors, _ = read(path, None, format="blocks", reveal_outputs=False)
    assert [r.timestamp_ms for r in requests] == expected and not errors


def test_a_time_of_another_unit_is_named(tmp_path):
    path = lines(tmp_path / "t.jsonl", [blocks(1.5), blocks("2.5")])
    requests, _, _ = read(path, None, time_unit="s")
    assert [r.timestamp_ms for r in requests] == [1500, 2500]
    with pytest.raises(TraceError, match="--time-unit is 'h'; allowed are ns, us, ms, s"):
        read_trace(path, time_unit="h")


def test_a_newest_first_file_is_turned_round_and_it_is_said(tmp_path):
    # More than the sample, two of each time.
    times = [at // 2 for at in range(3000)][::-1]
    path = lines(tmp_path / "t.jsonl", [blocks(at * 1000, n) for n, at in enumerate(times)])
    requests, errors, notes = read(path, None)
    assert [r.timestamp_ms for r in requests] == [at * 1000 for at in sorted(times)]
    assert [r.session for r in requests] == [f"s{n}" for n in range(2999, -1, -1)]
    assert errors == [] and notes == [f"{path}: is newest-first; its requests are sorted by time"]


def test_files_of_a_folder_are_merged_by_time(tmp_path):
    for name, times in (("a", (5, 7)), ("b/c", (4, 6))):
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        lines(path, [blocks(at) for at in times])
    document(tmp_path / "z.json", [{"conversations": []}])
    requests, errors, _ = read(tmp_path, None)
    assert [r.timestamp_ms for r in requests] == [4, 5, 6, 7]
    place = tmp_path / "z.json"
    assert errors == [f"{place}, line 1: is of format sharegpt, the folder of blocks"]


@pytest.mark.parametrize(
    ("step", "unit", "odd"),
    [
        (86.4, "s", None),
        (86.4, "ms", "before their session's last answer can have ended"),
        (0.0864, "ms", "1000 requests arrive within 0.08631 s"),
        (86_400_000, "s", "less than one an hour"),
    ],
)
def test_a_unit_that_looks_wrong_is_questioned(tmp_path, step, unit, odd):
    """A day of a thousand requests, in ten sessions."""
    path = lines(
        tmp_path / "t.jsonl",
        [blocks(n * step, n % 10, output_length=5000) for n in range(1000)],
    )
    _, _, notes = read(path, None, time_unit=unit)
    if odd is None:
        assert notes == []
    else:
        (note,) = notes
        assert odd in note and "--time-unit" in note


def test_a_unit_is_questioned_on_stderr(tmp_path, capsys):
    path = lines(tmp_path / "t.jsonl", [blocks(n / 1000, n) for n in range(100)])
    convert_trace.main([str(path), str(tmp_path / "o.jsonl"), "--to", "blocks"])
    assert f"note: {path}: 100 requests arrive within" in capsys.readouterr().err


def commands(path: Path, out: Path) -> dict[str, tuple]:
    sized = ["--model", MODEL, "--memory-gib", "3"]
    return {
        "convert": (convert_trace.main, [str(path), str(out), "--to", "blocks"]),
        "simulate": (
            simulate.main,
            ["--trace", str(path), "--engine", "shadow", "--policy", "lru", *sized],
        ),
        "advise": (advise.main, ["--trace", str(path), *sized]),
        "product": (product.main, ["--recording", str(path), *sized]),
    }


@pytest.mark.parametrize("command", ["convert", "simulate", "advise", "product"])
@pytest.mark.parametrize("content", ["", "\n\n", '{"a": 1}\n', "nonsense\n"])
def test_what_is_not_recognised_is_refused_with_the_formats(tmp_path, command, content):
    path = tmp_path / "nothing.jsonl"
    path.write_text(content)
    main, arguments = commands(path, tmp_path / "out.jsonl")[command]
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    message = str(raised.value)
    assert str(path) in message
    known = ["--marconi-record", "advise.py"] if command == "product" else list(FORMATS)
    assert all(name in message for name in known)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("command", ["convert", "simulate", "advise"])
def test_a_file_of_which_nothing_is_read_is_an_error(tmp_path, capsys, command):
    path = lines(tmp_path / "t.jsonl", [blocks(1, hash_ids=[1, 2, 3, 4, 5])] * 2)
    main, arguments = commands(path, tmp_path / "out.jsonl")[command]
    try:
        code: object = main(arguments)
    except SystemExit as error:
        code = error.code
    message = f"{code} {capsys.readouterr().err}"
    assert code not in (0, None)
    assert f"{path}: not one request was read as format blocks, 2 places were skipped" in message
    assert f"{path}, line 1: hash_ids has 5 entries" in message
    assert not (tmp_path / "out.jsonl").exists()


def test_what_was_converted_before_a_corrupt_line_is_kept(tmp_path, capsys):
    path = lines(tmp_path / "t.jsonl", [blocks(at) for at in range(3)])
    path.write_text(path.read_text() + "{broken\n" + json.dumps(blocks(9)) + "\n")
    out = tmp_path / "out.jsonl"
    convert_trace.main([str(path), str(out), "--to", "blocks"])
    assert len(out.read_text().splitlines()) == 4
    assert f"skipped: {path}, line 4" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"t\.jsonl, line 4"):
        convert_trace.main([str(path), str(out), "--to", "blocks", "--errors", "fail"])
    assert len(out.read_text().splitlines()) == 3


class Counting:
    """A tokenizer that counts the characters that it is given."""

    def __init__(self, tokenizer) -> None:
        self._tokenizer = tokenizer
        self.characters = 0

    def __getattr__(self, name: str):
        return getattr(self._tokenizer, name)

    def encode(self, text: str, **options) -> list[int]:
        self.characters += len(text)
        return self._tokenizer.encode(text, **options)


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_text_is_tokenized_once_however_often_prompts_repeat_it(tmp_path, template):
    """Work grows as the conversation does, not as the prompts together, and tokens stay."""
    from traces.chat import load_tokenizer

    real = load_tokenizer(save_byte_tokenizer(tmp_path / "tokenizer", template))
    work = {}
    for turns in (20, 40):
        history, records = [], []
        for turn in range(turns):
            history.append({"role": "user", "content": f"question {turn} {LONG}"})
            answer = {"role": "assistant", "content": f"answer {turn} {LONG}"}
            records.append({"messages": list(history), "choices": [{"message": answer}]})
            history.append(answer)
        path = lines(tmp_path / "t.jsonl", records)
        counting = Counting(real)
        requests, errors, _ = read(path, counting)
        assert errors == [] and len(requests) == turns
        work[turns] = counting.characters
        text = sum(len(message["content"]) for message in history)
        # What is new, what is checked once, and a chunk twice a request at most.
        assert counting.characters < 4 * text + turns * 2 * (CHUNK + 100)
        prompts = sum(request.input_length for request in requests)
        assert counting.characters < prompts / 2 or turns < 40
        last = requests[-1]
        whole = "".join(f"{m['role']}: {m['content']}\n" for m in history[:-1]) + "assistant:"
        if template is None:
            assert list(last.input_tokens) == real.encode(whole, add_special_tokens=False)
    assert work[40] < 2.5 * work[20]


def test_pieces_give_the_tokens_of_the_whole(tmp_path):
    """With a tokenizer that joins over words, whole texts are given to it."""
    from tokenizers import Tokenizer, models
    from traces.encoder import Encoder
    from transformers import PreTrainedTokenizerFast

    vocab = {"a": 0, " ": 1, "a ": 2, "a a": 3, " a": 4, "\n": 5}
    joins = Tokenizer(models.BPE(vocab=vocab, merges=[("a", " "), ("a ", "a")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=joins)
    text = "a " * CHUNK
    assert list(Encoder(tokenizer).encode(text)) == tokenizer.encode(text)


def test_the_docs_list_the_formats(tokenizer):
    assert table() in DOCS.read_text(), (
        "write traces.formats.table() into docs/benchmarks/traces.md"
    )
    assert {shape.format for shape in PUBLISHED} < set(FORMATS)
