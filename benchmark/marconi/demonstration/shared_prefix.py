"""Runs SGLang's own ``bench_serving`` on groups of prompts with a shared prefix."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from live.servers import log_tail, run_in_group

from demonstration.served import Run, Served

RUN_SECONDS = 600.0
# Any token that is text by itself: bench_serving starts its clock for the first token at the
# first *text*, and the random model's bytes are often only part of a character.
PRINTABLE_TOKEN = 70


@dataclass(frozen=True)
class SharedPrefix:
    """The benchmark's shape: lengths in tokens, drawn between half of them and all.

    ``output_token`` is what every reply consists of; None leaves it to the model.
    """

    groups: int
    prompts_per_group: int
    prefix_length: int
    question_length: int
    output_length: int
    concurrency: int
    seed: int
    output_token: int | None = PRINTABLE_TOKEN

    def command(self, model: Path, base_url: str, output: Path) -> tuple[str, ...]:
        """The command line that sends it to ``base_url`` and writes a JSON line to ``output``."""
        sampling: dict[str, Any] = {
            "temperature": 0,
            "max_new_tokens": self.output_length,
            "ignore_eos": True,
        }
        if self.output_token is not None:
            sampling["logit_bias"] = {str(self.output_token): 100.0}
        return (
            *(sys.executable, "-m", "sglang.bench_serving", "--backend", "sglang"),
            *("--base-url", base_url, "--model", str(model), "--tokenizer", str(model)),
            *("--dataset-name", "generated-shared-prefix", "--tokenize-prompt"),
            *("--gsp-num-groups", str(self.groups)),
            *("--gsp-prompts-per-group", str(self.prompts_per_group)),
            *("--gsp-system-prompt-len", str(self.prefix_length)),
            *("--gsp-question-len", str(self.question_length)),
            *("--gsp-output-len", str(self.output_length)),
            # Lengths that vary also keep bench_serving from caching its prompts in the home.
            *("--gsp-range-ratio", "0.5", "--max-concurrency", str(self.concurrency)),
            *("--seed", str(self.seed), "--flush-cache", "--cache-report", "--output-details"),
            *("--extra-request-body", json.dumps({"sampling_params": sampling})),
            *("--output-file", str(output)),
        )

    @property
    def requests(self) -> int:
        """How many requests one run sends."""
        return self.groups * self.prompts_per_group


def run_shared_prefix(
    shape: SharedPrefix, model: Path, base_url: str, output: Path, seconds: float = RUN_SECONDS
) -> Run:
    """Run the benchmark once against one server; its log lies beside ``output``.

    Raises:
        RuntimeError: if it fails or a request of it does; the message holds the log's end.
    """
    output.unlink(missing_ok=True)
    log_path = output.with_suffix(".log")
    with run_in_group(shape.command(model, base_url, output), log_path) as process:
        code = _wait(process, seconds)
    if code or not output.exists():
        raise RuntimeError(f"bench_serving ended with code {code}.\n{log_tail(log_path)}")
    run = parse_run(json.loads(output.read_text().splitlines()[-1]), shape.output_length)
    if len(run.served) != shape.requests:
        raise RuntimeError(f"{len(run.served)} of {shape.requests} answered.\n{log_tail(log_path)}")
    return run


def parse_run(result: dict[str, Any], output_length: int) -> Run:
    """Read one of bench_serving's JSON lines, written with --output-details --cache-report."""
    columns: Sequence[Sequence[Any]] = (
        result["input_lens"],
        result["cached_tokens"],
        result["ttfts"],
        result["itls"],
        result["errors"],
    )
    served = [
        Served(int(prompt), int(cached), output_length, float(ttft), float(ttft + sum(gaps)))
        for prompt, cached, ttft, gaps, error in zip(*columns, strict=True)
        if not error and ttft > 0
    ]
    return Run(served, float(result["duration"]))


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    return process.returncode
