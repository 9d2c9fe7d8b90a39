"""Figures and report from result rows: what is drawn, what is named missing, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import figures
import pytest
from matplotlib.colors import to_hex
from paper import figures as paper_figures
from pictures import Absent, Picture, Row, draw_all, read_rows
from pictures.alphas import alpha_sweep
from pictures.by_memory import cache_size, contention
from pictures.catalogue import FIGURES
from pictures.common import by_policy, panel_of, panel_titles, places, thinned
from pictures.compared import against_lru, against_vllm, first_token, pairs_with
from pictures.label_sweeps import arrivals, models
from pictures.lengths import by_length
from pictures.losses import outcome_shares, token_losses
from pictures.rows import parse_row
from pictures.style import drawing, look_of
from sglang.srt.marconi_utils import PAPER_7B, PAPER_7B_NAME, ModelCost, SeedCost

Record = dict[str, Any]

SIZES = (1.5, 3.0, 6.0, 12.0, 24.0)
TRACES = ("chat.jsonl.xz", "agents.jsonl")
SERVED = (
    "lru",
    "server:1",
    "cap:2",
    "marconi:0.25",
    "marconi:0.5",
    "marconi:1",
    "marconi-state:0.25",
    "marconi-state:0.5",
    "marconi-state:1",
    "seglen",
    "clairvoyant",
)
PAPER = ("vllm+", "sglang+", "marconi")


def record(policy: str, **changes: Any) -> Record:
    """A row as the simulator writes it; its rates follow from policy, memory and labels."""
    size = changes.get("memory_gib") or 6.0
    strength = (sum(policy.encode()) % 17) / 100
    swept = sum(str(changes.get("labels")).encode()) % 7 / 100
    rate = min(0.92, 0.2 + 0.1 * SIZES.index(size) + strength + swept) if size in SIZES else 0.5
    counted = policy != "lru"
    return {
        "engine": "sglang",
        "trace": TRACES[0],
        "policy": policy,
        "model": "Qwen/Qwen3-Next-80B-A3B-Instruct",
        "kv_tokens": 100_000,
        "state_slots": 50,
        "memory_gib": size,
        "mamba_full_memory_ratio": 0.9,
        "capacity": None,
        "admission": "sglang",
        "concurrency": None,
        "requests": 800,
        "unserved": 0,
        "input_tokens": 1_000_000,
        "token_hit_rate": rate,
        "request_hit_rate": 0.9,
        "flops_saved": rate - 0.02,
        "lost_tokens": {
            "state_evicted": 20_000 if counted else None,
            "kv_evicted": 40_000 if counted else None,
            "never_admitted": 1_000 if counted else None,
        },
        "evictions": {},
        "by_length": [
            {"max_input_tokens": top, "requests": 9, "input_tokens": 1000, "hit_tokens": hit}
            for top, hit in ((1024, int(800 * rate)), (4096, int(900 * rate)), (None, 10))
        ],
        "ttft_ms_modelled": None,
        "labels": {},
        "seconds": 1.0,
        **changes,
    }


def all_records() -> list[Record]:
    """Rows for every figure."""
    rows = [
        record(policy, trace=trace, memory_gib=size)
        for trace in TRACES
        for size in SIZES
        for policy in SERVED
    ]
    rows += [
        record("infinite", trace=trace, token_hit_rate=0.93, flops_saved=0.92) for trace in TRACES
    ]
    rows += [
        record(policy, engine="paper", memory_gib=size, admission=policy)
        for size in SIZES
        for policy in PAPER
    ]
    rows += [
        record(
            policy,
            concurrency=8,
            memory_gib=size,
            ttft_ms_modelled={
                "mean": 90 - size - len(policy),
                "p50": 60.0,
                "p95": 300 - size,
                "p99": 500 - 2 * len(policy),
            },
        )
        for size in SIZES[:3]
        for policy in ("lru", "marconi:0.5", "marconi-state:0.5")
    ]
    for label, values in {
        "layer_composition": ("32:4", "24:12", "30:5"),
        "state_dim": (16, 64, 128),
        "arrival_rate": (0.5, 1, 2),
        "think_time": (5, 10),
    }.items():
        rows += [
            record(
                policy,
                trace=f"generated-{value}.jsonl",
                model=f"sweep-{value}" if "_rate" not in label and "time" not in label else "m",
                labels={"shape": "chat", label: value},
            )
            for value in values
            for policy in ("lru", "marconi:0.5", "seglen")
        ]
    return rows


def rows_of(records: Sequence[Record]) -> list[Row]:
    return [parse_row(one) for one in records]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return rows_of(all_records())


@pytest.fixture(scope="module")
def pictures(rows: list[Row]) -> list[Picture]:
    return draw_all(rows)[0]


@pytest.fixture(autouse=True)
def report_style() -> Iterator[None]:
    with drawing():
        yield


def lines_of(axes: Any) -> dict[str, Any]:
    """Lines that a legend names, by label."""
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def drawn(made: Picture | Absent) -> Picture:
    assert isinstance(made, Picture), made
    return made


def write(path: Path, records: Sequence[Record]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def test_command_writes_every_figure_and_a_report_that_embeds_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = write(tmp_path / "results.jsonl", all_records())
    figures.main([str(results), "--out", str(tmp_path / "out")])
    page = (tmp_path / "out/report.html").read_text()
    assert "left out" not in capsys.readouterr().out
    made = sorted((tmp_path / "out").glob("*.png"))
    assert len(made) == len(FIGURES)
    for png in made:
        assert png.read_bytes()[:4] == b"\x89PNG"
        assert png.with_suffix(".svg").read_text().rstrip().endswith("</svg>")
        assert f'<h2 id="{png.stem}">' in page
    assert page.count("data:image/png;base64,") == len(FIGURES)
    assert "Missing figures" not in page
    assert "Skipped lines" not in page
    assert "prefers-color-scheme: dark" in page
    for outside in ("http:", "https:", "<script", "<link"):
        assert outside not in page


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    few = [record(policy, memory_gib=size) for policy in SERVED[:5] for size in SIZES[:2]]
    results = write(tmp_path / "results.jsonl", few)
    for folder in ("a", "b"):
        figures.main([str(results), "--out", str(tmp_path / folder)])
    for one in sorted((tmp_path / "a").iterdir()):
        assert one.read_bytes() == (tmp_path / "b" / one.name).read_bytes(), one.name


def test_figures_without_rows_are_named_with_what_they_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = write(tmp_path / "one.jsonl", [record("lru", by_length=[])])
    figures.main([str(results), "--out", str(tmp_path)])
    told = capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    _, absent = draw_all(read_rows([results])[0])
    assert len(absent) == len(FIGURES)
    for one in absent:
        assert f"left out: {one.key}; it needs" in told
        assert one.title in page
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{not json", "Expecting"),
        ("[1, 2]", "a row is a JSON object, this is list"),
        ('{"trace": "t", "policy": "lru", "flops_saved": 0.1}', "'token_hit_rate' is missing"),
        (json.dumps(record("lru", token_hit_rate=1.5)), "1.5; allowed are 0 to 1"),
        (json.dumps(record("lru", flops_saved="much")), "'flops_saved' is 'much', not a number"),
        (json.dumps(record("lru", engine="vllm")), "'vllm'; allowed are sglang, shadow, paper"),
        (json.dumps(record("lru", capacity="huge")), "'huge'; allowed are starved"),
        (json.dumps(record("lru", by_length=[{"requests": 1}])), "'input_tokens' is missing"),
        (json.dumps(record("lru", labels=3)), "'labels' is 3, not an object"),
        (json.dumps(record("lru", lost_tokens=[1])), "'lost_tokens' is [1], not an object"),
    ],
)
def test_corrupt_row_is_reported_with_file_and_line_and_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, what: str
) -> None:
    results = tmp_path / "results.jsonl"
    results.write_text("\n".join([json.dumps(record("lru", by_length=[])), "", line, ""]))
    figures.main([str(results), "--out", str(tmp_path)])
    error = capsys.readouterr().err
    assert f"skipped: {results}, line 3: " in error
    assert what in error
    page = (tmp_path / "report.html").read_text()
    assert "Skipped lines" in page
    assert "results.jsonl, line 3" in page


def test_line_that_is_no_text_is_reported(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    results.write_bytes(b"\xff\xfe\x00\n" + json.dumps(record("lru")).encode() + b"\n")
    found, problems = read_rows([results])
    assert len(found) == 1
    assert "line 1" in str(problems[0])


@pytest.mark.parametrize("content", [None, "", "{broken\n"])
def test_nothing_to_draw_ends_with_an_error(tmp_path: Path, content: str | None) -> None:
    results = tmp_path / "results.jsonl"
    if content is not None:
        results.write_text(content)
    with pytest.raises(SystemExit) as error:
        figures.main([str(results), "--out", str(tmp_path / "out")])
    assert error.value.code != 0
    assert not (tmp_path / "out").exists()


def test_run_told_twice_counts_as_told_last(tmp_path: Path) -> None:
    told = [record("lru", token_hit_rate=0.1), record("lru", token_hit_rate=0.3)]
    found, _ = read_rows([write(tmp_path / "r.jsonl", told)])
    assert [row.token_hit_rate for row in found] == [0.3]


def test_memory_is_read_off_the_budget_or_the_pools_of_a_known_model() -> None:
    paper = record("vllm+", engine="paper", memory_gib=None, capacity_bytes=3 * 2**30)
    pools = record("lru", memory_gib=None, kv_tokens=524_288, state_slots=0)
    unknown = record("lru", memory_gib=None, model="mine")
    found = [parse_row(one).memory_gib for one in (paper, pools, unknown)]
    assert found == [3.0, pytest.approx(12.0), None]


@pytest.mark.parametrize(
    ("engine", "policy", "family", "alpha"),
    [
        ("sglang", "lru", "lru", None),
        ("sglang", "server:1", "server:1", None),
        ("sglang", "server:2", "marconi", 0.5),
        ("sglang", "server:2:0.25", "marconi", 0.25),
        ("sglang", "marconi:2", "marconi", 2.0),
        ("sglang", "marconi-state:0.5", "marconi-state", 0.5),
        ("sglang", "cap:2", "cap", None),
        ("paper", "marconi", "marconi", None),
        ("paper", "marconi:0", "marconi", 0.0),
    ],
)
def test_family_and_weight_of_a_policy(
    engine: str, policy: str, family: str, alpha: float | None
) -> None:
    row = parse_row(record(policy, engine=engine))
    assert (row.family, row.alpha) == (family, alpha)


@pytest.mark.parametrize("engine", ["sglang", "paper"])
def test_every_policy_of_a_panel_looks_different_without_colour(
    rows: list[Row], engine: str
) -> None:
    looks = {row.policy: look_of(row) for row in rows if row.engine == engine}
    without_colour = {(look.marker, look.open_marker, str(look.line)) for look in looks.values()}
    assert len(without_colour) == len(looks)


def test_policy_has_one_colour_in_all_figures(pictures: list[Picture]) -> None:
    colours: dict[str, set[str]] = {}
    for picture in pictures:
        if picture.key == "alpha-sweep":
            continue  # its lines are families: their weight is the axis
        for axes in picture.figure.axes:
            for label, line in lines_of(axes).items():
                colours.setdefault(label, set()).add(to_hex(line.get_color()))
    assert len(colours) > len(SERVED)
    assert {label: found for label, found in colours.items() if len(found) > 1} == {}


def test_legends_stand_outside_the_panels(pictures: list[Picture]) -> None:
    for picture in pictures:
        figure = picture.figure
        figure.draw_without_rendering()
        [legend] = figure.legends
        left = legend.get_window_extent().x0
        assert all(axes.get_window_extent().x1 <= left for axes in figure.axes), picture.key


def test_every_panel_says_what_its_axes_measure(pictures: list[Picture]) -> None:
    for picture in pictures:
        for axes in (one for one in picture.figure.axes if one.axison):
            assert axes.get_xlabel() or axes.get_xticklabels(), picture.key
            assert picture.caption
            assert len(lines_of(axes)) <= 12, picture.key
        assert any(axes.get_ylabel() for axes in picture.figure.axes) or picture.key == (
            "token-losses"
        )
        assert all(len(line) == len(picture.columns) for line in picture.table), picture.key


def test_cache_size_draws_a_line_a_policy_and_both_bounds(rows: list[Row]) -> None:
    picture = drawn(cache_size([row for row in rows if row.engine == "sglang" and not row.labels]))
    hit, flops = picture.figure.axes[:2]
    assert hit.get_xscale() == "log"
    assert "GiB" in hit.get_xlabel()
    assert (hit.get_ylabel(), flops.get_ylabel()) == ("token hit rate, %", "prefill FLOPs saved, %")
    lines = lines_of(hit)
    assert {"LRU (stock)", "Marconi, α 0.5", "Marconi, state pool, α 1"} <= set(lines)
    assert "LRU (policy 1)" not in lines
    assert list(lines["clairvoyant"].get_xdata()) == list(SIZES)
    assert set(lines["infinite cache"].get_ydata()) == {93.0}
    expected = [100 * record("lru", memory_gib=size)["token_hit_rate"] for size in SIZES]
    assert list(lines["LRU (stock)"].get_ydata()) == pytest.approx(expected)


def test_too_many_policies_lose_the_weights_farthest_from_the_default() -> None:
    policies = ["lru", *(f"marconi:{k / 10}" for k in range(11)), *(f"p{k}" for k in range(3))]
    kept = thinned(by_policy(rows_of([record(policy) for policy in policies])))
    assert len(kept) == 12
    assert {"lru", "marconi:0.5", "p0", "p1", "p2"} <= set(kept)
    assert not {"marconi:0.0", "marconi:1.0"} & set(kept)


def test_capacities_of_a_panel_span_from_the_smallest_to_the_largest() -> None:
    sized = rows_of([record("lru", memory_gib=size) for size in SIZES])
    assert places(sized, 3) == [1.5, 6.0, 24.0]
    assert places(sized, 1) == [6.0]
    named = rows_of([record("lru", capacity=name) for name in ("ample", "starved", "middle")])
    assert places(named, 3) == ["starved", "middle", "ample"]


def test_another_release_is_another_panel() -> None:
    """Rows of before there was a choice are the product's release's."""
    rows = rows_of([record("lru"), record("lru", base="0.5.23"), record("lru", base="0.5.4")])
    assert len({row.setting for row in rows}) == 2
    titles = panel_titles([panel_of(row) for row in rows])
    assert any("SGLang 0.5.4" in title for title in titles)


def test_one_memory_and_a_part_of_the_trace_are_panels_of_their_own() -> None:
    given = [{}, {"memory": "elastic"}, {"measure_from": 0.5}]
    found = [parse_row(record("server:3", **changes)) for changes in given]
    titles = [" ".join(title.split()) for title in panel_titles([panel_of(row) for row in found])]
    assert titles[0] == "chat a pool each, memory ratio 0.9, measured from 0 % on"
    assert titles[1] == "chat one memory, measured from 0 % on"
    assert titles[2] == "chat a pool each, memory ratio 0.9, measured from 50 % on"


def test_block_hashes_alone_are_no_served_cache() -> None:
    found = [parse_row(record("lru", engine=engine)) for engine in ("sglang", "shadow")]
    titles = panel_titles([panel_of(row) for row in found])
    assert [title.splitlines()[1] for title in titles] == ["served cache", "block hashes"]


def test_losses_add_up_to_all_prompt_tokens(rows: list[Row]) -> None:
    for row in rows:
        assert sum(outcome_shares(row).values()) == pytest.approx(1)
    picture = drawn(token_losses(rows))
    for axes in (one for one in picture.figure.axes if one.axison):
        ends = {round(bar.get_y(), 3): 0.0 for bar in axes.patches}
        for bar in axes.patches:
            ends[round(bar.get_y(), 3)] = max(
                ends[round(bar.get_y(), 3)], bar.get_x() + bar.get_width()
            )
        assert list(ends.values()) == pytest.approx([100] * len(ends))


def test_losses_that_were_not_counted_are_not_called_new() -> None:
    stock = parse_row(record("lru", token_hit_rate=0.4))
    assert outcome_shares(stock) == {"hit": 0.4, "unknown": 0.6}


def test_alpha_sweep_draws_both_families_over_alpha(rows: list[Row]) -> None:
    picture = drawn(alpha_sweep([row for row in rows if not row.labels]))
    lines = lines_of(picture.figure.axes[0])
    for family in ("Marconi", "Marconi, state pool"):
        assert list(lines[family].get_xdata()) == [0.25, 0.5, 1.0]
    assert {"LRU (stock)", "infinite cache", "clairvoyant"} <= set(lines)


def test_comparison_pairs_runs_at_the_same_configuration(rows: list[Row]) -> None:
    pairs = pairs_with(rows, {"paper": "vllm+", "sglang": "lru"})
    assert pairs
    for row, base in pairs:
        assert (row.trace, row.memory_gib, row.setting) == (
            base.trace,
            base.memory_gib,
            base.setting,
        )


def test_figure_7_tells_ratios_to_vllm(rows: list[Row]) -> None:
    picture = drawn(against_vllm(rows))
    [axes] = picture.figure.axes
    assert axes.get_ylabel().startswith("token hit rate, ratio to vLLM+")
    assert set(lines_of(axes)) == {"SGLang+", "Marconi, tuned"}
    base = [record("vllm+", memory_gib=size)["token_hit_rate"] for size in SIZES]
    ours = [record("marconi", memory_gib=size)["token_hit_rate"] for size in SIZES]
    mean = sum(a / b for a, b in zip(ours, base, strict=True)) / len(SIZES)
    [told] = [line for line in picture.table if line[2:4] == ("chat", "Marconi, tuned")]
    assert told[4:6] == (str(len(SIZES)), f"{mean:.3f}")


def test_figure_7_leaves_out_configurations_where_vllm_hits_nothing() -> None:
    told = [
        record(policy, engine="paper", memory_gib=size, token_hit_rate=rate)
        for size, rates in ((3.0, (0.0, 0.5)), (6.0, (0.2, 0.5)))
        for policy, rate in zip(("vllm+", "marconi"), rates, strict=True)
    ]
    picture = drawn(against_vllm(rows_of(told)))
    assert "1 run left out: the baseline hit nothing" in picture.caption
    assert [line[4:6] for line in picture.table] == [("1", "2.500")]


def test_figure_8_has_a_panel_an_engine(rows: list[Row]) -> None:
    picture = drawn(against_lru(rows))
    labels = [axes.get_ylabel() for axes in picture.figure.axes]
    assert sorted(label.partition("\n")[0] for label in labels) == [
        "token hit rate, ratio to LRU (stock)",
        "token hit rate, ratio to SGLang+",
    ]


def test_figure_9_says_that_times_are_modelled(rows: list[Row]) -> None:
    picture = drawn(first_token(rows))
    axes = picture.figure.axes[0]
    assert "modelled" in picture.title
    assert "modelled from the cost curve and queueing" in picture.caption
    assert "modelled TTFT" in axes.get_ylabel()
    assert [text.get_text() for text in axes.get_xticklabels()] == ["mean", "P50", "P95", "P99"]


def test_figure_10_draws_rates_by_length_and_the_difference_to_lru(rows: list[Row]) -> None:
    picture = drawn(by_length([row for row in rows if row.engine == "sglang" and not row.labels]))
    rates, gains = picture.figure.axes[:2]
    assert "tokens" in rates.get_xlabel()
    assert [text.get_text() for text in rates.get_xticklabels()] == ["1,024", "4,096", "longer"]
    assert "LRU (stock)" in lines_of(rates)
    assert "LRU (stock)" not in lines_of(gains)
    assert "6 GiB" in rates.get_title(loc="left")


def test_figure_11_tells_the_gain_over_lru_in_points(rows: list[Row]) -> None:
    picture = drawn(contention([row for row in rows if row.engine == "sglang" and not row.labels]))
    gain = picture.figure.axes[1]
    assert gain.get_ylabel() == "gain over LRU, points"
    expected = [
        100
        * (
            record("cap:2", memory_gib=size)["token_hit_rate"]
            - record("lru", memory_gib=size)["token_hit_rate"]
        )
        for size in SIZES
    ]
    assert list(lines_of(gain)["cap 2"].get_ydata()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("make", "ticks"),
    [
        (models, [["24:12", "30:5", "32:4"], ["16", "64", "128"]]),
        (arrivals, [["0.5", "1", "2"], ["5", "10"]]),
    ],
)
def test_figures_12_and_13_sweep_labels_in_order(
    rows: list[Row], make: Callable[[Sequence[Row]], Picture | Absent], ticks: list[list[str]]
) -> None:
    picture = drawn(make(rows))
    told = [[one.get_text() for one in axes.get_xticklabels()] for axes in picture.figure.axes]
    assert told == ticks
    assert all(len(lines_of(axes)) == 3 for axes in picture.figure.axes)


def test_paper_sweeps_reach_the_simulator_and_every_label(tmp_path: Path) -> None:
    made: list[Path] = []
    commands: list[list[str]] = []

    def generate(shape: str, arrivals: paper_figures.Arrivals, seed: int, out: Path) -> None:
        assert out not in made
        made.append(out)
        out.write_text(f"{shape} {arrivals} {seed}")

    def simulator(command: Sequence[str]) -> int:
        commands.append(list(command))
        return int("concurrency" in " ".join(command))

    options = paper_figures.parse_arguments(["--out", str(tmp_path), "--seed", "7"])
    failed = paper_figures.run(options, generate, simulator)
    told = [" ".join(command) for command in commands]
    assert failed
    assert all("--concurrency" in one for one in failed)
    for label in ("layer_composition=24:12", "state_dim=16", "arrival_rate=2.0", "think_time=10.0"):
        for engine in ("paper", "sglang"):
            assert any(f"--label {label}" in one and f"--engine {engine}" in one for one in told)
    for command in commands:
        model = command[command.index("--model") + 1]
        assert cost_of(model).state_bytes > 0
        assert Path(command[command.index("--trace") + 1]) in made


def cost_of(model: str) -> ModelCost:
    if model == PAPER_7B_NAME:
        return PAPER_7B.as_model_cost()
    return SeedCost(**json.loads(Path(model).read_text())).as_model_cost()


def test_quick_paper_sweeps_are_a_smaller_part(tmp_path: Path) -> None:
    quick, whole = (list(paper_figures.sweeps(quick=quick)) for quick in (True, False))
    runs = [sum(len(sweep.memory_gib) for sweep in some) for some in (quick, whole)]
    assert runs[0] < runs[1]
    assert {name for sweep in quick for name in sweep.labels} == {
        name for sweep in whole for name in sweep.labels
    }
    assert all(sweep.arrivals.sessions < paper_figures.Arrivals().sessions for sweep in quick)
