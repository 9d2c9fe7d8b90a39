"""Shapes of sessions: what each turn's prompt repeats of what was sent before."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

from traces.generator.chat import FIRST_PROMPT, LATER_PROMPT, REPLY, TURNS
from traces.generator.content import Content
from traces.timing import WORDS_PER_TOKEN, Timing
from traces.tokens import token_count


@dataclass(frozen=True)
class Sizes:
    """How large a workload's parts are; lengths in tokens.

    Attributes:
        groups: different system prompts (of shared-prefix, few-shot and the agents).
        system: a system prompt.
        question: what a user asks (shared-prefix, few-shot, one-off noise of twice the length).
        output: an answer or an agent's action; exactly, but for chats.
        shots: most examples of a few-shot prompt; each has ``question + output`` tokens.
        turns: calls of an agent's session.
        observation: mean of the exponential length of what an agent's tool returns.
        kept: an eliding agent's newest observations that stay; the first stays too.
        history: a session ends before prompt and output would exceed this.
        vocab: token ids lie below it.

    Raises:
        ValueError: a size is below 1.
    """

    groups: int = 16
    system: int = 2048
    question: int = 128
    output: int = 256
    shots: int = 8
    turns: int = 30
    observation: int = 600
    kept: int = 5
    history: int = 32_768
    vocab: int = 32_000

    def __post_init__(self) -> None:
        for size in fields(self):
            if getattr(self, size.name) < 1:
                raise ValueError(
                    f"{size.name} is {getattr(self, size.name)}; allowed are 1 or more"
                )


@dataclass(frozen=True)
class Draws:
    """What a session draws from: its own generator, the workload's contents, sizes and times."""

    rng: random.Random
    content: Content
    sizes: Sizes
    timing: Timing


@dataclass(frozen=True)
class Turn:
    """One request: milliseconds from the session's start, packed prompt and output."""

    at_ms: float
    prompt: bytes
    output: bytes


Shape = Callable[[Draws], Iterator[Turn]]


def shared_prefix(draws: Draws) -> Iterator[Turn]:
    """``generated-shared-prefix``: one of ``groups`` system prompts, and a question of its own."""
    sizes = draws.sizes
    prompt = _system(draws, "shared-prefix") + draws.content.fresh(sizes.question, draws.rng)
    yield Turn(0.0, prompt, draws.content.fresh(sizes.output, draws.rng))


def few_shot(draws: Draws) -> Iterator[Turn]:
    """An instruction, 1 to ``shots`` of its examples in their order, and a question."""
    sizes, rng = draws.sizes, draws.rng
    group = rng.randrange(sizes.groups)
    length = sizes.question + sizes.output
    examples = range(rng.randint(1, sizes.shots))
    parts = [draws.content.named(sizes.question, "instruction", group)]
    parts += [draws.content.named(length, "example", group, example) for example in examples]
    parts.append(draws.content.fresh(sizes.question, rng))
    yield Turn(0.0, b"".join(parts), draws.content.fresh(sizes.output, rng))


def chat(draws: Draws) -> Iterator[Turn]:
    """Turns of a conversation, with lengths fitted to ShareGPT (``chat_workload.py``)."""
    rng = draws.rng
    clock, history = 0.0, b""
    for index in range(TURNS.draw(rng)):
        typed = max(round((LATER_PROMPT if index else FIRST_PROMPT).draw(rng)), 1)
        answered = max(round(REPLY.draw(rng)), 1)
        if index:
            clock += draws.timing.response_ms(rng)
            clock += draws.timing.typing_ms(typed * WORDS_PER_TOKEN)
        prompt = history + draws.content.fresh(typed, rng)
        output = draws.content.fresh(answered, rng)
        if _too_long(prompt, output, draws.sizes):
            return
        yield Turn(clock, prompt, output)
        history = prompt + output


def agent(draws: Draws) -> Iterator[Turn]:
    """An agent whose every prompt extends the one before by action and observation."""
    yield from _agent(draws, kept=draws.sizes.turns)


def eliding_agent(draws: Draws) -> Iterator[Turn]:
    """An agent that drops old observations: from then on prompts diverge in mid-history.

    The newest ``kept`` observations and the first stay; every action stays.
    """
    yield from _agent(draws, kept=draws.sizes.kept)


def noise(draws: Draws) -> Iterator[Turn]:
    """One request that shares nothing with any other."""
    sizes = draws.sizes
    prompt = draws.content.fresh(2 * sizes.question, draws.rng)
    yield Turn(0.0, prompt, draws.content.fresh(sizes.output, draws.rng))


def _agent(draws: Draws, kept: int) -> Iterator[Turn]:
    sizes, rng = draws.sizes, draws.rng
    start = _system(draws, "agent") + draws.content.fresh(sizes.question, rng)
    clock = 0.0
    steps: list[tuple[bytes, bytes]] = []
    for _ in range(sizes.turns):
        newest = len(steps) - kept
        history = (
            action + (observation if number == 0 or number >= newest else b"")
            for number, (action, observation) in enumerate(steps)
        )
        prompt = start + b"".join(history)
        action = draws.content.fresh(sizes.output, rng)
        if _too_long(prompt, action, sizes):
            return
        yield Turn(clock, prompt, action)
        observed = max(round(rng.expovariate(1 / sizes.observation)), 1)
        steps.append((action, draws.content.fresh(observed, rng)))
        clock += draws.timing.response_ms(rng)


def _system(draws: Draws, kind: str) -> bytes:
    group = draws.rng.randrange(draws.sizes.groups)
    return draws.content.named(draws.sizes.system, kind, group)


def _too_long(prompt: bytes, output: bytes, sizes: Sizes) -> bool:
    return token_count(prompt) + token_count(output) > sizes.history


SHAPES: dict[str, Shape] = {
    "shared-prefix": shared_prefix,
    "few-shot": few_shot,
    "chat": chat,
    "agent": agent,
    "eliding-agent": eliding_agent,
    "noise": noise,
}
