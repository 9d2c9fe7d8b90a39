"""The launches that operators make: the list is whole, and some of them are served here."""

from __future__ import annotations

import argparse
from itertools import combinations, product
from pathlib import Path

import pytest
from launches.command import line
from launches.listed import ALL, LAUNCHES, Launch, Outcome
from launches.pairs import SETTINGS, allowed, pairs
from launches.served import serve
from launches.trial import conversations, try_launch
from live.server_api import marconi_counters
from rows.parts.matrix import matrix_rows
from rows.store import Rows
from rows.tables.matrix import matrix
from server_harness import tiny_model
from sglang.srt.server_args import ServerArgs
from sglang_cpu_reference.tiny_models import MODELS

BY_NUMBER = {launch.number: launch for launch in ALL}
#: What the tests serve; `make matrix` serves all.
SERVED = (11,)


def test_twenty_launches_and_modes_have_numbers_of_their_own():
    assert [launch.number for launch in LAUNCHES] == list(range(1, 21))
    assert len(BY_NUMBER) == len(ALL)


@pytest.mark.parametrize("launch", (*ALL, *pairs()), ids=lambda launch: f"launch-{launch.number}")
def test_flags_are_sglangs_and_models_are_there(launch: Launch):
    parser = argparse.ArgumentParser(exit_on_error=False)
    ServerArgs.add_cli_args(parser)
    for flags in (launch.flags, launch.decode):
        parser.parse_args(["--model-path", "x", *flags])
    assert launch.tiny in MODELS


def test_every_two_values_that_sglang_serves_together_meet():
    met = [dict(word.rsplit(" ", 1) for word in one.typed.split(", ")) for one in pairs()]
    assert all(allowed(chosen) for chosen in met) and len(met) < 20
    for one, other in combinations(SETTINGS, 2):
        for first, second in product(SETTINGS[one], SETTINGS[other]):
            if allowed({one: first, other: second}):
                assert any(m[one] == first and m[other] == second for m in met), (first, second)


@pytest.mark.server
@pytest.mark.parametrize("number", SERVED)
def test_a_launch_is_served_with_stocks_answers(number: int):
    launch = BY_NUMBER[number]
    outcome = try_launch(launch, tiny_model(launch.tiny, "float32"), requests_under_load=90)
    assert not outcome.problems and outcome.served, outcome.problems
    assert outcome.equal == outcome.asked and outcome.under_load == 90
    assert outcome.evicted_states > 20 and outcome.core == "MambaRadixRustTreeCore"


@pytest.mark.server
def test_a_prefill_and_a_decode_server_answer_as_one_stock_server():
    """Policy 3 on both, which resume at states of their own; `make matrix` evicts and cancels."""
    launch, model = BY_NUMBER[25], tiny_model("qwen3.5", "float32")
    prompts = conversations(seed=25, count=4, turns=3)
    with serve(launch.undivided(), model, ()) as stock, serve(launch, model, launch.policy) as pair:
        wanted, found = (
            [served.ask(prompt, 8).json()["output_ids"] for prompt in prompts]
            for served in (stock, pair)
        )
        assert found == wanted
        for counters in (marconi_counters(url)[0] for url in pair.urls):
            assert counters["requests"] == len(prompts) and counters["hit_tokens"] > 0
            assert not counters["errors"] and not counters["fallbacks_to_lru"]


@pytest.mark.server
def test_a_decode_server_without_a_prefix_cache_is_refused_and_the_message_says_so():
    outcome = try_launch(BY_NUMBER[14], tiny_model("qwen3.5", "float32"), requests_under_load=0)
    assert outcome.served and "--disaggregation-mode is 'decode'" in outcome.message
    assert "refused: --marconi-evict-policy" in line(BY_NUMBER[14], outcome)


def test_a_trial_that_goes_wrong_is_told():
    launch = BY_NUMBER[6]
    outcome = Outcome(6, problems=["2 answers are not stock's"])
    assert "FAILED: 2 answers are not stock's" in line(launch, outcome)


@pytest.mark.server
def test_a_server_that_does_not_start_is_a_failure_with_its_last_words(tmp_path: Path):
    launch = Launch(1, "none", "none", "qwen3.5", ("--page-size", "-3"))
    outcome = try_launch(launch, tmp_path / "missing", requests_under_load=0)
    assert not outcome.served and outcome.problems[0]


def test_the_table_has_a_line_a_launch():
    records = [
        {**vars(Outcome(3, served=True, core="MambaRadixTreeCore", asked=36, equal=36))},
        {**vars(Outcome(14, served=True, message="--marconi-evict-policy is 3 but"))},
        {**vars(Outcome(6, problems=["it ended"]))},
    ]
    rows = {row["id"]: row for row in matrix_rows(records, "python matrix.py")}
    lines = matrix(Rows(rows)).splitlines()
    assert [text.split("|")[1].strip() for text in lines[2:]] == ["3", "6", "14"]
    assert "Python core; under policy 1 36 of 36 answers are stock's" in lines[2]
    assert "**failed**: it ended" in lines[3] and "refused: --marconi" in lines[4]
