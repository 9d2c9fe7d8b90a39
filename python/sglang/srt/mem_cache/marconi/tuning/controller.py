"""Tunes a cache: every rank counts, one looks back, all adopt the same at the same request."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from sglang.srt.mem_cache.marconi.config import MarconiConfig
from sglang.srt.mem_cache.marconi.tuning.schedule import Schedule, Step
from sglang.srt.mem_cache.marconi.tuning.splits import SplitAdvice
from sglang.srt.mem_cache.marconi.tuning.tuner import Answer, Tuner
from sglang.srt.mem_cache.marconi.tuning.weights import EFF_WEIGHTS, first_weight

logger = logging.getLogger(__name__)

Agree = Callable[[int, int], tuple[int, int]]
"""Takes the first rank's pair of numbers to all ranks; called by every rank, in the same order."""


@dataclass
class Controller:
    """The tuning of one cache on one rank.

    Ranks count the same requests in the same order, so that all know without asking when a window
    ends. From then on they meet once every few requests, until the first rank has an answer or
    gives up, and at no other time.

    Attributes:
        tuner: on the first rank, ``None`` on others.
        agree: ``None`` where there is one rank.
        adopt: puts a weight in force.
        in_force: the weight in force; 0 where the policy has none.
        split: the split of memory that was warned about, if one was.
    """

    config: MarconiConfig
    tuner: Tuner | None
    agree: Agree | None
    adopt: Callable[[float], None]
    adoptions: int = 0
    unanswered: int = 0
    split: SplitAdvice | None = None
    schedule: Schedule = field(init=False)
    in_force: float = field(init=False)

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.config)
        self.in_force = first_weight(self.config, is_tuned=True)

    def count_request(self, evicted: bool) -> None:
        """Count a request that is being served.

        Args:
            evicted: the cache has evicted something since it was made.
        """
        if self.tuner is not None:
            self.tuner.count_request()
        if not self.config.tunes:
            return
        step = self.schedule.count(evicted)
        if step is Step.LOOK_BACK and self.tuner is not None:
            self.tuner.look_back(self.schedule.bootstrap)
        elif step is Step.ASK:
            self._ask()

    def describe(self) -> dict[str, object]:
        """What is going on, as plain JSON types; only the first rank knows of the tuner."""
        schedule = self.schedule
        described: dict[str, object] = {
            "in_force": self.in_force,
            "adoptions": self.adoptions,
            "unanswered": self.unanswered,
            "pending": schedule.is_pending,
            "requests": schedule.requests,
            "bootstrap": schedule.bootstrap,
            "next_look_back": schedule.next_look_back,
            "better_split": None if self.split is None else asdict(self.split),
        }
        if self.tuner is not None:
            health, verdict = self.tuner.health, self.tuner.verdict
            described["tuner"] = {
                "pid": self.tuner.pid,
                "answers": health.answers,
                "failures": health.failures,
                "restarts": health.restarts,
                "cpu_seconds": health.cpu_seconds,
                "backlog_bytes": self.tuner.backlog,
            }
            if verdict is not None:
                described["last_window"] = {
                    "requests": verdict.requests,
                    "chosen": EFF_WEIGHTS[verdict.chosen],
                    "flops_saved": {
                        f"{weight:g}": trial.flops_saved
                        for weight, trial in zip(EFF_WEIGHTS, verdict.trials, strict=True)
                    },
                }
        return described

    def _warn_of_split(self) -> None:
        """Say once that memory is split badly; only the first rank knows."""
        verdict = None if self.tuner is None else self.tuner.verdict
        if verdict is None or verdict.split is None or self.split is not None:
            return
        self.split = verdict.split
        logger.warning("Marconi: %s (sglang-marconi advise says more)", self.split.sentence())

    def _ask(self) -> None:
        found, chosen = Answer.PENDING, 0
        if self.tuner is not None:
            found = self.tuner.answer()
            if found is Answer.CHOSEN and self.tuner.verdict is not None:
                chosen = self.tuner.verdict.chosen
        if self.agree is not None:
            number, chosen = self.agree(found, chosen)
            found = Answer(number)
        if found is Answer.PENDING:
            return
        self.schedule.answered(gave_up=found is Answer.NONE)
        if found is Answer.NONE:
            self.unanswered += 1
            return
        self._warn_of_split()
        before, after = self.in_force, EFF_WEIGHTS[chosen]
        logger.info(
            "Marconi: tuned at request %d: weight %s",
            self.schedule.requests,
            f"{before:g} stays" if before == after else f"{before:g} gives way to {after:g}",
        )
        if before != after:
            self.adoptions += 1
            self.in_force = after
            self.adopt(after)
