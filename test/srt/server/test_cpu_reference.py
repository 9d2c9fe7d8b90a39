"""The tiny models in a real SGLang server against transformers' own implementation of them."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import requests
import torch
from server_harness import Server, launch_server, tiny_model

pytestmark = pytest.mark.server

# Log-probabilities of float32 models; seen to differ by up to 5e-5.
TOLERANCE = 1e-3
NEW_TOKENS = 24
LENGTHS = (5, 64, 200, 517)
CASES = {
    "qwen3-next-extra_buffer-tp2": ("qwen3-next", "extra_buffer", ("--tp", "2")),
    "falcon-h1-no_buffer-dp2": ("falcon-h1", "no_buffer", ("--dp-size", "2")),
    "nemotron-h-no_buffer": ("nemotron-h", "no_buffer", ()),
    "lfm2-no_buffer": ("lfm2", "no_buffer", ()),
    "granite-hybrid-extra_buffer": ("granite-hybrid", "extra_buffer", ()),
    "kimi-linear-extra_buffer": ("kimi-linear", "extra_buffer", ()),
    "qwen3.5-extra_buffer-pp2": ("qwen3.5", "extra_buffer", ("--pp-size", "2")),
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in CASES],
)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[str, Server]]:
    model, strategy, arguments = CASES[request.param]
    flags = ("--mamba-radix-cache-strategy", strategy, "--enable-metrics", *arguments)
    with launch_server(tiny_model(model, "float32"), *flags) as server:
        yield model, server


@cache
def prompts() -> list[list[int]]:
    """Random tokens, none of them special."""
    draw = random.Random(1)
    return [[draw.randrange(3, 259) for _ in range(length)] for length in LENGTHS]


@cache
def reference(model: str) -> Any:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tiny_model(model, "float32"), dtype=torch.float32)
    return loaded.eval()


@torch.no_grad()
def reference_logprobs(model: str, tokens: list[int]) -> torch.Tensor:
    """[T, vocabulary]: after each token, by transformers."""
    logits = reference(model)(torch.tensor([tokens])).logits[0]
    result: torch.Tensor = logits.float().log_softmax(-1)
    return result


def outputs(answers: list[Any]) -> list[list[int]]:
    return [answer["output_ids"] for answer in answers]


def hits(answers: list[Any]) -> list[int]:
    return [answer["meta_info"]["cached_tokens"] for answer in answers]


def test_equals_transformers(case: tuple[str, Server]) -> None:
    """Every token's log-probability, prompt and output, and the choice of every output token."""
    model, server = case
    server.flush_cache()
    answers = server.generate(prompts(), NEW_TOKENS, return_logprob=True, logprob_start_len=0)
    for prompt, answer in zip(prompts(), answers, strict=True):
        tokens = prompt + answer["output_ids"]
        wanted = reference_logprobs(model, tokens)
        meta = answer["meta_info"]
        entries = [*meta["input_token_logprobs"][1:], *meta["output_token_logprobs"]]
        found = torch.tensor([entry[0] for entry in entries])
        following = torch.tensor(tokens[1:]).unsqueeze(-1)
        expected = wanted[:-1].gather(-1, following).squeeze(-1)
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
        assert wanted[len(prompt) - 1 : -1].argmax(-1).tolist() == answer["output_ids"]


def test_a_cache_hit_changes_nothing(case: tuple[str, Server]) -> None:
    _, server = case
    server.flush_cache()
    # One after another: which data-parallel worker serves a batch's rows would be left to chance.
    first = [server.generate(prompt, NEW_TOKENS) for prompt in prompts()]
    longer = [prompt + out for prompt, out in zip(prompts(), outputs(first), strict=True)]
    # Twice, as the first time may go to the other of two workers.
    hit = [server.generate(prompt, NEW_TOKENS) for _ in range(2) for prompt in longer]
    assert sum(hits(hit)) > 0
    server.flush_cache()
    cold = [server.generate(prompt, NEW_TOKENS) for prompt in longer]
    assert hits(cold) == [0] * len(longer)
    assert outputs(hit) == outputs(cold) * 2


def test_cancelled_requests_leave_a_working_server(case: tuple[str, Server]) -> None:
    model, server = case
    answers: list[Any] = []

    def run(rid: str) -> None:
        # A worker that had not seen the request yet cannot cancel it; end it by its length then.
        answers.append(server.generate(prompts()[2], 2000, rid=rid))

    threads = [threading.Thread(target=run, args=(f"cancelled-{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    server.abort("cancelled-0")
    server.abort()
    for thread in threads:
        thread.join()
    reasons = [answer["meta_info"]["finish_reason"]["type"] for answer in answers]
    assert reasons.count("abort") >= 1
    server.flush_cache()
    answer = server.generate(prompts()[1], NEW_TOKENS)
    wanted = reference_logprobs(model, prompts()[1] + answer["output_ids"])
    assert wanted[len(prompts()[1]) - 1 : -1].argmax(-1).tolist() == answer["output_ids"]


def test_serves_chat_and_metrics(case: tuple[str, Server]) -> None:
    _, server = case
    chat = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Grüße, 世界"}],
        "max_tokens": 4,
    }
    answer = server.post("/v1/chat/completions", chat).json()
    # One token per byte and one per special token of the template.
    text = "<user\nGrüße, 世界>\n<assistant\n"
    assert answer["usage"]["prompt_tokens"] == len(text.encode())
    assert "sglang:prompt_tokens_total" in server.metrics()


def test_the_platform_chose_its_defaults(case: tuple[str, Server]) -> None:
    _, server = case
    info = server.info()
    assert info["device"] == "cpu"
    assert info["attention_backend"] == "torch_native"
    assert info["disable_overlap_schedule"] is True
    assert info["dtype"] == "float32"
    with pytest.raises(requests.HTTPError):
        server.get("/no_such_path")
