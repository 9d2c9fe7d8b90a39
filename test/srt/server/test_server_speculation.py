"""Speculative decoding on real servers: the model's own greedy answers, whatever was drafted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from launches.listed import NEXTN
from launches.served import POOLS as TIGHT_POOLS
from launches.trial import conversations
from server_harness import Server, launch_server, tiny_model

pytestmark = pytest.mark.server

MODEL = "qwen3.5-mtp"
TOKENS = 12
#: transformers is slow: it goes through one answer in so many.
CHECKED_EVERY = 4
STRATEGY = ("--mamba-radix-cache-strategy", "extra_buffer")
#: A chain of the model's own drafts in pages, and trees of what was said before.
CASES = {
    "nextn": (*NEXTN, "--page-size", "64", "--marconi-evict-policy", "3"),
    "ngram": ("--speculative-algorithm", "NGRAM", "--marconi-evict-policy", "1"),
}


@pytest.fixture(scope="module", params=CASES)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.param == "ngram" and shutil.which("g++") is None:
        pytest.skip("SGLang compiles its n-grams with g++")
    arguments = (*TIGHT_POOLS, *STRATEGY, *CASES[request.param])
    with launch_server(tiny_model(MODEL, "float32"), *arguments) as started:
        yield started


@torch.no_grad()
def own_choices(prompts: list[list[int]], answers: list[list[int]]) -> list[list[int]]:
    """What transformers, which has no drafts, says after each token of the answers."""
    from transformers import AutoModelForCausalLM

    path = tiny_model(MODEL, "float32")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    said = []
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = model(torch.tensor([prompt + answer])).logits[0]
        said.append(logits[len(prompt) - 1 : -1].argmax(-1).tolist())
    return said


def metas(answers: list[Any], name: str) -> int:
    return sum(answer["meta_info"][name] for answer in answers)


def test_answers_are_the_models_own_through_hits_evictions_and_drafts(server: Server) -> None:
    prompts = conversations(seed=5, count=7, turns=4)
    answers = [server.generate(prompt, TOKENS) for prompt in prompts]
    # Several at once, all known already as far as they were kept.
    answers += server.generate(prompts, TOKENS)
    found = [answer["output_ids"] for answer in answers]
    some = slice(1, len(prompts), CHECKED_EVERY)
    assert found[some] == own_choices(prompts[some], found[some])
    assert found[len(prompts) :] == found[: len(prompts)]

    assert metas(answers, "cached_tokens") > 0
    right = metas(answers, "spec_num_correct_drafts")
    assert 0 < right < metas(answers, "spec_num_proposed_drafts")
    state = server.info()["internal_states"][0]["marconi"]
    assert state["states_evicted"] > 20
    assert state["errors"] == 0 and not state["fallbacks_to_lru"]
    # SGLang compares its pools with its tree when it idles, and ends itself on a leak.
    server.flush_cache()
    server.generate([5, 6, 7], 2)
    server.flush_cache()
    assert server.alive() and "leak" not in server.log().lower()
    assert "Traceback" not in server.log()
