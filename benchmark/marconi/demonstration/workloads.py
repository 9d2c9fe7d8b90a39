"""The workloads: what each is, and how it is played on servers that stand side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from live.servers import Server
from tqdm import tqdm
from traces.generator.chat import Session, make_sessions, working_set

from demonstration.chat import run_chat
from demonstration.clients import run_clients
from demonstration.contenders import TITLES
from demonstration.plan import Plan
from demonstration.served import Run
from demonstration.shared_prefix import run_shared_prefix

Play = Callable[[Plan, Mapping[str, Server], Path], dict[str, list[Run]]]

NAMES = {
    "clients": "Clients in a queue",
    "shared-prefix": "generated-shared-prefix",
    "chat": "Chat, one request at a time",
}


def there_and_back(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Round and server: A B C, C B A, B C A, A C B, ...: nobody always comes first or last."""
    for index in range(rounds):
        first = index // 2 % len(names)
        order = [*names[first:], *names[:first]]
        for name in order if index % 2 == 0 else reversed(order):
            yield index, name


def play_clients(plan: Plan, servers: Mapping[str, Server], out: Path) -> dict[str, list[Run]]:
    """In each round every client holds its next conversation; the caches stay as they are."""
    total = plan.rounds * len(servers) * plan.clients.requests
    with tqdm(total=total, unit="request") as bar:

        def play(index: int, name: str) -> Run:
            bar.set_description(f"clients in a queue: {TITLES[name]}")
            conversations = plan.clients.conversations(index)
            return run_clients(servers[name].base_url, conversations, bar.update)

        return _one_after_the_other(plan.rounds, servers, play)


def play_shared_prefix(
    plan: Plan, servers: Mapping[str, Server], out: Path
) -> dict[str, list[Run]]:
    """In each round bench_serving sends all to an empty cache."""
    shape = plan.shared_prefix
    with tqdm(total=plan.rounds * len(servers), unit="run") as bar:

        def play(index: int, name: str) -> Run:
            bar.set_description(f"bench_serving generated-shared-prefix: {TITLES[name]}")
            output = out / f"bench-serving-{index + 1}-{name}.jsonl"
            url = servers[name].base_url
            run = run_shared_prefix(shape, Path(plan.model), url, output, plan.run_seconds)
            bar.update()
            return run

        return _one_after_the_other(plan.rounds, servers, play)


def play_chat(plan: Plan, servers: Mapping[str, Server], out: Path) -> dict[str, list[Run]]:
    """Each request to every server before the next."""
    sessions = chat_sessions(plan)
    before = {name: server.cpu_seconds() for name, server in servers.items()}
    total = sum(len(session.turns) for session in sessions)
    with tqdm(total=total, desc="chat, one request at a time", unit="request") as bar:
        urls = {name: server.base_url for name, server in servers.items()}
        served = run_chat(urls, sessions, on_request=bar.update)
    return {
        name: [
            Run(
                requests,
                sum(request.seconds for request in requests),
                servers[name].cpu_seconds() - before[name],
            )
        ]
        for name, requests in served.items()
    }


PLAYERS: Mapping[str, Play] = {
    "clients": play_clients,
    "shared-prefix": play_shared_prefix,
    "chat": play_chat,
}


def chat_sessions(plan: Plan) -> tuple[Session, ...]:
    """The conversations of the chat."""
    return make_sessions(
        plan.chat_sessions, plan.seed, scale=plan.chat_scale, max_history=plan.chat_history
    )


def outgrown(plan: Plan, workload: str) -> float:
    """How many times the KV pool a workload's tokens are, those that prompts share counted once.

    Of the clients only those tokens count that belong to conversations under way at the same time.
    """
    return distinct_tokens(plan, workload) / plan.pools.kv_tokens


def distinct_tokens(plan: Plan, workload: str) -> int:
    """Tokens that a cache would have to hold to lose nothing; bench_serving's are expected ones."""
    if workload == "clients":
        return plan.clients.live_tokens(0)
    if workload == "chat":
        return working_set(chat_sessions(plan))
    shape = plan.shared_prefix
    # bench_serving draws lengths between half of the asked and all of it.
    each = 0.75 * shape.question_length + shape.output_length
    return round(shape.groups * 0.75 * shape.prefix_length + shape.requests * each)


def about(plan: Plan, workload: str) -> str:
    """A sentence on a workload's size."""
    pool = f"{outgrown(plan, workload):.1f} times the KV pool"
    if workload == "clients":
        crowd = plan.clients
        states = crowd.requests / plan.pools.states
        return (
            f"{crowd.clients} clients hold {crowd.turns}-turn conversations at once behind "
            f"{crowd.shared} shared tokens, {plan.pools.running} requests run at a time, the "
            f"others queue; {plan.rounds} time(s) {crowd.requests} requests. What is under way at "
            f"once is {pool}, and the turns of a round leave {states:.1f} times the states that "
            "there is room for."
        )
    if workload == "chat":
        sessions = chat_sessions(plan)
        turns = sum(len(session.turns) for session in sessions)
        return (
            f"{turns} requests of {len(sessions)} sessions, lengths 1/{plan.chat_scale} of "
            f"ShareGPT's, one request at a time; all together are {pool}."
        )
    shape = plan.shared_prefix
    return (
        f"SGLang's bench_serving: {shape.requests} requests of {shape.groups} groups, "
        f"{shape.concurrency} at a time, {plan.rounds} time(s); their tokens are {pool}."
    )


def _one_after_the_other(
    rounds: int, servers: Mapping[str, Server], play: Callable[[int, str], Run]
) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {name: [] for name in servers}
    for index, name in there_and_back(list(servers), rounds):
        before = servers[name].cpu_seconds()
        run = play(index, name)
        runs[name].append(replace(run, cpu_seconds=servers[name].cpu_seconds() - before))
    return runs
