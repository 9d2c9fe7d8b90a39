"""Small files of the shapes in which traces are published, made by code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]
#: Text of which the tests' tokenizer makes a token a character.
LONG = "a long enough observation of a file in the repository. " * 6


def lines(path: Path, records: list[Record]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def document(path: Path, value: object, indent: int | None = None) -> Path:
    """One JSON document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=indent))
    return path


def bailian(folder: Path) -> Path:
    """Two chats, one of which goes on and branches."""

    def chat(id: int, parent: int, at: float, length: int, turn: int, ids: list[int]) -> Record:
        return {
            **{"chat_id": id, "parent_chat_id": parent, "timestamp": at, "input_length": length},
            **{"output_length": 40, "type": "text", "turn": turn, "hash_ids": ids},
        }

    return lines(
        folder / "qwen_traceA_blksz_16.jsonl",
        [
            chat(159, -1, 0.0, 41, 1, [0, 1, 2]),
            chat(7, -1, 1.5, 32, 1, [0, 9]),
            chat(160, 159, 61.114, 120, 2, [0, 1, 3, 4, 5, 6, 7, 8]),
            chat(161, 159, 62.25, 48, 2, [0, 1, 10]),
            chat(162, 160, 90.0, 200, 3, [0, 1, 3, 4, 5, 6, 7, *range(20, 26)]),
        ],
    )


def mooncake(folder: Path) -> Path:
    """The tool-agent trace's lines."""
    return lines(
        folder / "toolagent_trace.jsonl",
        [
            {"timestamp": at, "input_length": length, "output_length": 26, "hash_ids": ids}
            for at, length, ids in (
                (0, 1100, [0, 1, 2]),
                (3000, 1600, [0, 1, 3, 4]),
                (3000, 1024, [0, 1]),
                (9000, 700, [5, 6]),
            )
        ],
    )


def mooncake_sessions(folder: Path) -> Path:
    """The same shape as AIPerf and Dynamo take it, with sessions and delays."""
    turns = [
        {"session_id": "a", "timestamp": 0, "input_length": 1100, "hash_ids": [0, 1, 2]},
        {"session_id": "a", "delay": 500, "input_length": 2000, "hash_ids": [0, 1, 3, 4]},
        {"session_id": "b", "timestamp": 100, "input_length": 600, "hash_ids": [7, 8]},
    ]
    return lines(folder / "sessions.jsonl", [{**turn, "output_length": 600} for turn in turns])


def kv_session(id: str, first: int, scope: str = "local", relative: bool = False) -> Record:
    """A session of kv-cache-tester: a main agent, one sub-agent with one of its own."""

    def call(t: float, tokens: int, ids: list[int]) -> Record:
        return {
            **{"t": t, "type": "s", "model": "m", "in": tokens, "out": 70, "hash_ids": ids},
            **{"input_types": ["text"], "output_types": ["text"], "stop": "tool_use"},
            **{"api_time": 1.5, "think_time": 0.0},
        }

    def agent(t: float, name: str, requests: list[Record]) -> Record:
        return {
            **{"t": t, "type": "subagent", "agent_id": name, "subagent_type": "Explore"},
            **{"duration_ms": 9000, "status": "completed", "models": ["m"], "requests": requests},
        }

    def at(start: float, t: float) -> float:
        return t if relative else start + t

    inner = agent(at(20, 5), "agent_002", [call(at(25, 0.5), 64, [first, 50][:1])])
    nested = [call(at(20, 1), 130, [first, 40]), inner, call(at(20, 8), 200, [first, 40, 41])]
    return {
        **{"id": id, "models": ["m"], "block_size": 64, "hash_id_scope": scope},
        **{"tool_tokens": 100, "system_tokens": 20},
        "requests": [
            call(0.0, 150, [first, 2]),
            call(4.0, 0, []),
            agent(20.0, "agent_001", nested),
            call(60.0, 300, [first, 2, 3, 4]),
        ],
    }


def kv_cache_tester(folder: Path) -> Path:
    """A folder with a file a session; the same ids mean different blocks in each."""
    for number in (1, 2):
        name = f"trace_{number:04d}"
        document(folder / "traces" / f"{name}.json", kv_session(name, 1))
    return folder / "traces"


def inferencex(folder: Path) -> Path:
    """A session a line, requests as JSON text as tables hold them."""
    sessions = [kv_session("one", 1), kv_session("two", 1)]
    sessions[1]["requests"] = [json.dumps(item) for item in sessions[1]["requests"]]
    return lines(folder / "traces.jsonl", sessions)


def dynamo(folder: Path) -> Path:
    """Ends of requests with replay hashes, and a tool's event."""

    def ended(at: int, session: str, tokens: int, hashes: list[int]) -> Record:
        replay = {"trace_block_size": 32, "input_length": tokens, "input_sequence_hashes": hashes}
        return {
            **{"schema": "dynamo.request.trace.v1", "event_type": "request_end"},
            **{"event_time_unix_ms": at + 900, "agent_context": {"session_id": session}},
            "request": {"request_received_ms": at, "output_tokens": 33, "replay": replay},
        }

    tool = {"schema": "dynamo.request.trace.v1", "event_type": "tool_end"}
    start = 1777312800000
    return lines(
        folder / "dynamo-request-trace.000000.jsonl",
        [
            ended(start + 500, "s", 100, [2**64 - 1, 8, 9]),
            {"timestamp": 1, "event": ended(start, "t", 70, [2**64 - 1, 8])},
            {**tool, "event_time_unix_ms": start + 600, "tool": {"tool_call_id": "c"}},
            ended(start + 2000, "s", 160, [2**64 - 1, 8, 9, 10, 11]),
        ],
    )


def lmcache(folder: Path) -> Path:
    """Two sessions, a file each, with microseconds; one is not in order."""
    start = 1760428436442742
    for session, shift in (("0639", 0), ("07c6", 700_000)):
        asked = [f"<task {session}> {LONG}"]
        for step in range(3):
            asked.append(f"{asked[-1]}\n<returncode>{step}</returncode>\n{LONG}")
        records = [
            {
                **{"timestamp": start + shift + 2_000_000 * step, "input": text},
                **{"output": f"THOUGHT: step {step}", "session_id": session},
            }
            for step, text in enumerate(asked)
        ]
        lines(folder / f"{session}.jsonl", [records[1], records[0], *records[2:]])
    return folder


def conversation(topic: str, turns: int = 3) -> list[Record]:
    """Messages that take turns, the assistant's last."""
    return [
        {"role": "assistant" if at % 2 else "user", "content": f"{topic} {at}: {LONG}"}
        for at in range(2 * turns)
    ]


def mini_swe_agent(folder: Path) -> Path:
    """A run's folder: an instance a sub-folder, and files that are no trajectories."""
    for number, instance in enumerate(("django__django-1", "sympy__sympy-2")):
        messages = [
            {"role": "system", "content": "You are a helpful assistant"},
            *conversation(instance),
            {"role": "exit", "content": "done", "extra": {"exit_status": "Submitted"}},
        ]
        for at, message in enumerate(messages):
            message.setdefault("extra", {})["timestamp"] = 1760428436.5 + 10 * at + number
        trajectory = {
            **{"info": {"exit_status": "Submitted"}, "messages": messages},
            "trajectory_format": "mini-swe-agent-1.1",
        }
        document(folder / "run" / instance / f"{instance}.traj.json", trajectory, indent=2)
    document(folder / "run" / "preds.json", {"django__django-1": {"model_patch": ""}})
    return folder / "run"


def bare_messages(folder: Path) -> Path:
    """The first trajectories of mini-swe-agent: messages alone."""
    return document(folder / "local.traj.json", conversation("task"), indent=2)


def message_rows(folder: Path) -> Path:
    """Rows of a table of trajectories, as one JSON list."""
    rows = [{"instance_id": name, "messages": conversation(name)} for name in ("one", "two")]
    return document(folder / "train.json", rows)


def server_events(topic: str) -> list[Record]:
    """Events of the OpenHands server: two calls of one answer, then one that ends in text."""

    def event(number: int, source: str, **more: Any) -> Record:
        stamp = f"2026-01-01T00:00:{10 * number:02d}.5"
        return {"id": number, "timestamp": stamp, "source": source, **more}

    def called(number: int, call: str, response: str, **more: Any) -> Record:
        calls = [{"id": f"{response}-{n}", "type": "function"} for n in range(2)]
        message = {"role": "assistant", "content": f"thinking {LONG}", "tool_calls": calls}
        answer = {"id": response, "choices": [{"message": message}]}
        metadata = {"function_name": "execute_bash", "tool_call_id": call, "model_response": answer}
        source = "agent" if "action" in more else "environment"
        return event(number, source, tool_call_metadata=metadata, **more)

    return [
        event(0, "agent", action="system", args={"content": f"You are OpenHands. {LONG}"}),
        event(1, "user", action="message", args={"content": f"{topic} {LONG}"}),
        event(2, "agent", action="recall", args={"query": "x"}),
        called(3, "r1-0", "r1", action="run", args={"command": "ls"}),
        called(3, "r1-0", "r1", observation="run", content=LONG),
        called(4, "r1-1", "r1", action="run", args={"command": "cat"}),
        event(4, "agent", observation="run", content=LONG, cause=4),
        event(5, "agent", action="message", args={"content": f"It is done. {LONG}"}),
    ]


def openhands(folder: Path) -> Path:
    """A folder with a list of events in each of its sub-folders."""
    for instance in ("one", "two"):
        document(folder / "runs" / instance / "trajectory.json", server_events(instance), indent=1)
    return folder / "runs"


def openhands_output(folder: Path) -> Path:
    """An evaluation's lines; the older of pairs."""
    events = server_events("pairs")
    return lines(
        folder / "output.jsonl",
        [
            {"instance_id": "flat", "history": server_events("flat"), "metrics": {}},
            {"instance_id": "pairs", "history": [events[:4], *([e, e][:1] for e in events[4:])]},
        ],
    )


def openhands_sdk(folder: Path) -> Path:
    """Events of the OpenHands SDK."""

    def event(number: int, kind: str, source: str, **more: Any) -> Record:
        stamp = f"2026-01-01T00:00:{10 * number:02d}"
        return {"kind": kind, "timestamp": stamp, "source": source, **more}

    def parts(text: str) -> list[Record]:
        return [{"type": "text", "text": text}]

    def action(number: int, call: str) -> Record:
        tool = {"id": call, "name": "terminal", "arguments": "{}"}
        more = {"thought": parts("look "), "tool_call": tool, "llm_response_id": "r"}
        return event(number, "ActionEvent", "agent", **more)

    seen = {"observation": {"kind": "TerminalObservation", "content": parts(LONG)}}
    asked = {"llm_message": {"role": "user", "content": parts(f"task {LONG}")}}
    told = {"llm_message": {"role": "assistant", "content": parts("done")}}
    events = [
        event(0, "SystemPromptEvent", "agent", system_prompt=parts("You are OpenHands")[0]),
        event(1, "MessageEvent", "user", **asked),
        action(2, "c1"),
        action(2, "c2"),
        event(3, "ObservationEvent", "environment", **seen),
        event(3, "ConversationStateUpdateEvent", "environment"),
        event(4, "MessageEvent", "agent", **told),
    ]
    return lines(folder / "output.jsonl", [{"instance_id": "sdk", "history": events}])


def completions(folder: Path) -> Path:
    """OpenHands' completion logs: a file a call, a sub-folder a session."""
    for number, instance in enumerate(("one", "two")):
        messages = conversation(instance)
        for at in (1, 3, 5):
            answer = {"choices": [{"message": messages[at]}]}
            record = {
                **{"messages": messages[:at], "response": answer, "cost": 0.1},
                "timestamp": 1760428436.25 + 10 * at + number,
            }
            document(folder / "logs" / instance / f"model-{at}.json", record, indent=2)
    return folder / "logs"


def vllm(folder: Path) -> Path:
    """Conversations of vLLM's multi-turn benchmark."""
    found = [{"id": name, "messages": conversation(name)} for name in ("UzTK34D", "aXq1")]
    return document(folder / "sharegpt_conv_128.json", found, indent=2)


def aiperf_messages(folder: Path) -> Path:
    """AIPerf's entries with the whole history."""
    messages = conversation("topic")
    return lines(
        folder / "input.jsonl",
        [
            {
                **{"session_id": "sess-1", "messages": messages[:at], "timestamp": 1000 * at},
                "output_length": len(messages[at]["content"]),
            }
            for at in (1, 3, 5)
        ],
    )


def aiperf_deltas(folder: Path) -> Path:
    """AIPerf's entries with what is new in each turn."""
    delta = {"session_id": "s", "message_mode": "delta", "output_length": 512}
    said = [{"role": "user", "content": f"turn {turn}: {LONG}"} for turn in range(3)]
    return lines(
        folder / "input.jsonl",
        [
            {**delta, "messages": [{"role": "system", "content": LONG}, said[0]], "timestamp": 0},
            {**delta, "messages": [said[1]], "delay": 2000},
            {**delta, "messages": [said[2]], "delay": 2000},
        ],
    )


def aiperf_turns(folder: Path) -> Path:
    """AIPerf's conversations, a line each."""
    turns = [{"text": f"turn 0: {LONG}"}, {"text": f"and {LONG}", "delay": 100}]
    return lines(
        folder / "input.jsonl",
        [{"session_id": "a", "turns": turns}, {"turns": [{"texts": [LONG, "and"]}]}],
    )


@dataclass(frozen=True)
class Published:
    """A shape, and what is read of it.

    Attributes:
        write: makes the file or folder and gives its path.
        format, block: as the reader finds them.
        sessions: names of sessions, by how many requests each has.
    """

    write: Callable[[Path], Path]
    format: str
    block: int
    sessions: dict[str | None, int]


_KV = {"": 2, "/agent_001": 2, "/agent_001/agent_002": 1}

PUBLISHED = (
    Published(bailian, "bailian", 16, {"159": 4, "7": 1}),
    Published(mooncake, "mooncake", 512, {None: 4}),
    Published(mooncake_sessions, "mooncake", 512, {"a": 2, "b": 1}),
    Published(
        kv_cache_tester,
        "kv-cache-tester",
        64,
        {f"trace_000{n}{agent}": count for n in (1, 2) for agent, count in _KV.items()},
    ),
    Published(
        inferencex,
        "kv-cache-tester",
        64,
        {f"{name}{agent}": count for name in ("one", "two") for agent, count in _KV.items()},
    ),
    Published(dynamo, "dynamo", 32, {"s": 2, "t": 1}),
    Published(lmcache, "lmcache", 64, {"0639": 4, "07c6": 4}),
    Published(
        mini_swe_agent,
        "swe-agent",
        64,
        {
            "django__django-1/django__django-1.traj:1": 3,
            "sympy__sympy-2/sympy__sympy-2.traj:1": 3,
        },
    ),
    Published(bare_messages, "swe-agent", 64, {"local.traj:1": 3}),
    Published(message_rows, "swe-agent", 64, {"one": 3, "two": 3}),
    Published(openhands, "openhands", 64, {"one/trajectory:1": 2, "two/trajectory:1": 2}),
    Published(openhands_output, "openhands", 64, {"flat": 2, "pairs": 2}),
    Published(openhands_sdk, "openhands", 64, {"sdk": 2}),
    Published(completions, "openai", 64, {"one": 3, "two": 3}),
    Published(vllm, "vllm-multi-turn", 64, {"UzTK34D": 3, "aXq1": 3}),
    Published(aiperf_messages, "aiperf", 64, {"sess-1": 3}),
    Published(aiperf_deltas, "aiperf", 64, {"s": 3}),
    Published(aiperf_turns, "aiperf", 64, {"a": 2, "input:2": 1}),
)
