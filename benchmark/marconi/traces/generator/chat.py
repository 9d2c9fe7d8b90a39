"""A seeded multi-turn chat made by code, with the shape of real conversations.

Every draw comes from a distribution fitted to the request trace sharegpt-a (750 ShareGPT
conversations of three turns and more, 7,708 requests), from which nothing is stored here but the
parameters below. ``fit_chat_workload.py`` redoes the fits. KS is the largest distance between the
fitted and the trace's cumulative distribution, whole tokens taken into account.

==========================  ======================================================  =====
quantity                    family and parameters                                   KS
==========================  ======================================================  =====
turns of a session          3 + two geometric laws, p 0.301 (50 %) and 0.0756        0.014
first prompt, tokens        two lognormals: median 16.6 sigma 0.58 (48 %),           0.018
                            median 86.6 sigma 1.45
later prompts, new tokens   two lognormals: median 16.3 sigma 0.74 (79 %),           0.019
                            median 94.1 sigma 1.41
replies, tokens             two lognormals: median 56.3 sigma 1.20 (22 %),           0.021
                            median 291 sigma 0.56
request to next, seconds    5 + tokens of the prompt x Weibull (shape 5.55,          0.045
                            scale 0.487 s)
session starts, seconds     exponential gaps of mean 1.33 s                          0.043
==========================  ======================================================  =====

What the fits leave out: the trace's own times are made up (90 words a minute of typing after 5 s),
so the gaps repeat that rule and no user's patience; 10 % of the trace's requests add no prompt to
the one before (one reply stored in two parts) and are not fitted; the slowest 1 % of the gaps
between session starts (the trace's tail, up to 18 minutes) are cut; and draws are independent, so
that a long prompt does not make the session's next one longer, as it may in life.

**Scale.** All lengths are divided by ``SCALE`` = 8 and rounded up: the tiny model's recurrent
state is worth about 310 tokens of its KV cache where Qwen3-Next-80B-A3B's is worth about 3,140,
so that short conversations meet the same trade between states and KV as real ones do there. Times
are not scaled; they fix the order of the requests and nothing else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SCALE = 8
# Ids below are the tiny tokenizer's special tokens; all models of use have more than 256.
FIRST_TOKEN, LAST_TOKEN = 3, 255
MAX_HISTORY = 4000


@dataclass(frozen=True)
class LognormalMixture:
    """Two lognormal laws: with probability ``weight`` the first, else the second.

    ``medians`` in the unit of what is drawn, ``sigmas`` of its natural logarithm.
    """

    weight: float
    medians: tuple[float, float]
    sigmas: tuple[float, float]

    def draw(self, rng: random.Random) -> float:
        """One value, above 0."""
        which = int(rng.random() >= self.weight)
        return rng.lognormvariate(math.log(self.medians[which]), self.sigmas[which])

    def cdf(self, value: float) -> float:
        """The probability of a draw up to ``value``."""
        shares = (self.weight, 1 - self.weight)
        laws = zip(shares, self.medians, self.sigmas, strict=True)
        return sum(share * _lognormal_cdf(value, median, sigma) for share, median, sigma in laws)


@dataclass(frozen=True)
class GeometricMixture:
    """``least`` plus the failures before a success of one of two probabilities."""

    least: int
    weight: float
    chances: tuple[float, float]

    def draw(self, rng: random.Random) -> int:
        """One whole number, ``least`` or more."""
        chance = self.chances[int(rng.random() >= self.weight)]
        return self.least + int(math.log(1 - rng.random()) / math.log(1 - chance))

    def cdf(self, value: float) -> float:
        """The probability of a draw up to ``value``."""
        trials = math.floor(value) - self.least + 1
        if trials <= 0:
            return 0.0
        first, second = (1 - (1 - chance) ** trials for chance in self.chances)
        return self.weight * first + (1 - self.weight) * second


@dataclass(frozen=True)
class TypingGap:
    """Seconds from one request to the next: a pause, then so much a token of the new prompt."""

    pause: float
    shape: float
    seconds_per_token: float

    def draw(self, rng: random.Random, tokens: int) -> float:
        """Seconds before a prompt of ``tokens`` new tokens (of the trace, not scaled)."""
        return self.pause + tokens * rng.weibullvariate(self.seconds_per_token, self.shape)


TURNS = GeometricMixture(least=3, weight=0.4995, chances=(0.3006, 0.0756))
FIRST_PROMPT = LognormalMixture(weight=0.4754, medians=(16.59, 86.57), sigmas=(0.5848, 1.4457))
LATER_PROMPT = LognormalMixture(weight=0.7877, medians=(16.30, 94.11), sigmas=(0.7374, 1.4064))
REPLY = LognormalMixture(weight=0.2152, medians=(56.30, 291.29), sigmas=(1.1979, 0.5619))
GAP = TypingGap(pause=5.0, shape=5.550, seconds_per_token=0.4871)
SESSION_GAP_SECONDS = 1.33


@dataclass(frozen=True)
class Turn:
    """One request: what the user adds, how long the reply is, and when it arrives.

    ``user_tokens`` are token ids, ``reply_length`` is in tokens, ``arrival`` in seconds.
    """

    user_tokens: tuple[int, ...]
    reply_length: int
    arrival: float


@dataclass(frozen=True)
class Session:
    """One conversation; each prompt is all that came before it and the turn's own tokens."""

    turns: tuple[Turn, ...]

    @property
    def tokens(self) -> int:
        """Length of the whole conversation in tokens."""
        return sum(len(turn.user_tokens) + turn.reply_length for turn in self.turns)


@dataclass(frozen=True, order=True)
class Arrival:
    """Which turn of which session is sent at what time (seconds)."""

    seconds: float
    session: int
    turn: int


def make_sessions(
    count: int, seed: int, *, scale: int = SCALE, max_history: int = MAX_HISTORY
) -> tuple[Session, ...]:
    """``count`` conversations, the same for the same seed; more sessions keep the first ones.

    Lengths are divided by ``scale``. A conversation ends before ``max_history`` tokens would be
    exceeded (one first turn longer than that is cut to it).
    """
    starts = random.Random(f"{seed}/starts")
    clock = 0.0
    sessions = []
    for index in range(count):
        clock += starts.expovariate(1 / SESSION_GAP_SECONDS)
        rng = random.Random(f"{seed}/{index}")
        sessions.append(Session(tuple(_turns(rng, clock, scale, max_history))))
    return tuple(sessions)


def request_order(sessions: Sequence[Session]) -> tuple[Arrival, ...]:
    """All turns in the order in which they arrive: one order, whoever serves them."""
    return tuple(
        sorted(
            Arrival(turn.arrival, session_index, turn_index)
            for session_index, session in enumerate(sessions)
            for turn_index, turn in enumerate(session.turns)
        )
    )


def prompt_tokens(session: Session, replies: Sequence[Sequence[int]]) -> list[int]:
    """The prompt of the turn that follows ``replies``, the token ids answered so far."""
    prompt: list[int] = []
    for turn, reply in zip(session.turns, replies, strict=False):
        prompt.extend(turn.user_tokens)
        prompt.extend(reply)
    prompt.extend(session.turns[len(replies)].user_tokens)
    return prompt


def working_set(sessions: Sequence[Session]) -> int:
    """Tokens of all whole conversations together: what an infinite cache ends with."""
    return sum(session.tokens for session in sessions)


def repeated_fraction(sessions: Sequence[Session]) -> float:
    """Fraction of all prompt tokens that the same session has sent or been sent before.

    No cache can hit more; one with room for all, which resumes at 64-token steps, hits less.
    """
    repeated = prompted = 0
    for session in sessions:
        history = 0
        for turn in session.turns:
            repeated += history
            history += len(turn.user_tokens)
            prompted += history
            history += turn.reply_length
    return repeated / prompted


def _turns(rng: random.Random, start: float, scale: int, max_history: int) -> Iterator[Turn]:
    arrival, history = start, 0
    for index in range(TURNS.draw(rng)):
        length = max(1, round((LATER_PROMPT if index else FIRST_PROMPT).draw(rng)))
        if index:
            arrival += GAP.draw(rng, length)
        user = math.ceil(length / scale)
        reply = math.ceil(REPLY.draw(rng) / scale)
        if index == 0:
            user = min(user, max_history - 1)
            reply = min(reply, max_history - user)
        if history + user + reply > max_history:
            return
        history += user + reply
        tokens = tuple(rng.randint(FIRST_TOKEN, LAST_TOKEN) for _ in range(user))
        yield Turn(tokens, reply, arrival)


def _lognormal_cdf(value: float, median: float, sigma: float) -> float:
    if value <= 0:
        return 0.0
    return 0.5 * (1 + math.erf(math.log(value / median) / (sigma * math.sqrt(2))))
