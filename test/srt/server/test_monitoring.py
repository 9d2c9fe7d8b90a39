"""The dashboard and the alert rules: what they ask for exists, and the rules do what they say."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import promql_parser as promql
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families
from server_harness import REPOSITORY, launch_server, tiny_model
from sglang.srt.mem_cache.marconi.insight.metrics import PrometheusExporter
from sglang.srt.mem_cache.marconi.insight.stats import Lookup, MarconiStats, VictimKind
from test_server_tuning import POOLS, TUNING, long_documents, recent_sessions

MONITORING = REPOSITORY / "docs" / "monitoring"
DASHBOARD = MONITORING / "grafana-dashboard.json"
RULES = MONITORING / "alerts.yml"
RULES_TEST = MONITORING / "alerts_test.yml"
SCRAPE = MONITORING / "prometheus.yml"

#: What Prometheus adds to each series that it scrapes.
SCRAPE_LABELS = frozenset({"job", "instance"})
#: What a sound server may never count, or only under other flags.
MAY_NEVER_COME = frozenset(
    f"sglang:marconi_{name}_total"
    for name in (
        *("lru_fallbacks", "errors", "tuner_failures", "tuner_restarts", "adoptions"),
        *("states_taken_back", "prefill_cuts", "backups_skipped", "view_rebuilds"),
    )
)
#: Grafana's own variables, which stand where PromQL wants a duration.
DURATIONS = {"$__rate_interval": "5m", "$__range": "6h"}

#: What the default configuration of two versions of Prometheus asks a server for.
ACCEPTED = {
    "2.42": "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1"
    ";q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "3.0": "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/"
    "openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
}

Samples = Mapping[str, list[Mapping[str, str]]]


@dataclass(frozen=True)
class Query:
    """One PromQL expression, where it stands, and the labels that its texts name."""

    where: str
    text: str
    shown_labels: frozenset[str]

    def parsed(self) -> Any:
        text = self.text
        for variable, duration in DURATIONS.items():
            text = text.replace(variable, duration)
        return promql.parse(text)


# -- the files


def panels() -> list[dict]:
    shown = [p for p in json.loads(DASHBOARD.read_text())["panels"] if p["type"] != "row"]
    assert len(shown) > 20
    return shown


def panel_queries() -> list[Query]:
    return [
        Query(panel["title"], target["expr"], templated(r"\{\{(\w+)\}\}", target["legendFormat"]))
        for panel in panels()
        for target in panel["targets"]
    ]


def rules() -> list[dict]:
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def alerts() -> list[dict]:
    return [rule for rule in rules() if "alert" in rule]


def rule_queries() -> list[Query]:
    return [
        Query(
            rule.get("alert") or rule["record"],
            rule["expr"],
            templated(r"\$labels\.(\w+)", *rule.get("annotations", {}).values()),
        )
        for rule in rules()
    ]


def tested_series() -> list[Any]:
    """Selectors of the series that the rules' unit tests make up; their values are free."""
    cases = yaml.safe_load(RULES_TEST.read_text())["tests"]
    return [promql.parse(series["series"]) for case in cases for series in case["input_series"]]


def templated(pattern: str, *texts: str) -> frozenset[str]:
    return frozenset(label for text in texts for label in re.findall(pattern, text))


# -- PromQL


def children(expr: Any) -> list[Any]:
    match expr:
        case promql.BinaryExpr():
            return [expr.lhs, expr.rhs]
        case promql.Call():
            return list(expr.args)
        case promql.MatrixSelector():
            return [expr.vector_selector]
        case promql.AggregateExpr() | promql.ParenExpr() | promql.UnaryExpr():
            return [expr.expr]
        case _:
            assert not isinstance(expr, promql.SubqueryExpr), "not walked"
            return []


def walk(expr: Any) -> Iterator[Any]:
    yield expr
    for child in children(expr):
        yield from walk(child)


def selectors(expr: Any) -> list[Any]:
    return [node for node in walk(expr) if isinstance(node, promql.VectorSelector)]


def grouped(expr: Any) -> frozenset[str]:
    """Labels by which anything in an expression is aggregated."""
    return frozenset(
        label
        for node in walk(expr)
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None
        for label in node.modifier.labels
    )


def recorded() -> Samples:
    """The series that the rules make themselves, with the labels that their aggregation keeps."""
    labels: dict[str, frozenset[str]] = {}
    for rule in rules():
        if "record" in rule:
            expr = promql.parse(rule["expr"])
            of_others = [labels[s.name] for s in selectors(expr) if s.name in labels]
            labels[rule["record"]] = (grouped(expr) | frozenset().union(*of_others)) - {"le"}
    return {name: [dict.fromkeys(those, "")] for name, those in labels.items()}


def series_of(text: str) -> Samples:
    """Names of all samples of a text as /metrics serves it, and the labels of each."""
    found: dict[str, list[Mapping[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


class UnitCost:
    kv_bytes_per_token = 1.0
    state_bytes = 8.0

    def flops(self, start: int, end: int) -> float:
        return float(end - start)


def all_counted() -> CollectorRegistry:
    """Our exporter once each of its counters has counted something."""
    stats = MarconiStats(UnitCost())
    stats.count_lookup(Lookup(100, 40, 60, 80, True), flops_saved=4.0, flops_needed=10.0)
    for kind in VictimKind:
        stats.count_victim("state", kind, node_id=3, resumed=7, depth=9, kv_tokens=5)
    stats.lost_tokens["kv_evicted"] += 1
    stats.fallbacks["state"] += 1
    for field in fields(stats):
        if getattr(stats, field.name) == 0:
            setattr(stats, field.name, 1)
    registry = CollectorRegistry()
    labels = {"model_name": "m", "tp_rank": "0", "pp_rank": "0"}
    PrometheusExporter(labels, registry)(stats)
    return registry


def declared() -> Samples:
    """What our exporter shows once each of its counters has counted something."""
    samples = series_of(generate_latest(all_counted()).decode())
    return {name: those for name, those in samples.items() if not name.endswith("_created")}


def check(query: Query, known: Samples) -> None:
    """Every series and label that a query names is known; fails otherwise."""
    expr = query.parsed()
    for selector in selectors(expr):
        assert selector.name in known, f"{query.where}: nothing exports {selector.name}"
        fixed = [m for m in selector.matchers.matchers if "$" not in m.value]
        assert not selector.matchers.or_matchers
        named = {m.name for m in selector.matchers.matchers} - SCRAPE_LABELS
        some = known[selector.name]
        assert named <= set(some[0]), f"{query.where}: {selector} has labels {sorted(some[0])}"
        assert any(
            all(m.op != promql.MatchOp.Equal or labels.get(m.name) == m.value for m in fixed)
            for labels in some
        ), f"{query.where}: no series matches {selector}"
    for node in walk(expr):
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            for selector in selectors(node.expr):
                missing = set(node.modifier.labels) - SCRAPE_LABELS - set(known[selector.name][0])
                assert not missing, f"{query.where}: {selector.name} has no {sorted(missing)}"
    below = grouped(expr).union(*(known[s.name][0] for s in selectors(expr)))
    assert query.shown_labels <= below | SCRAPE_LABELS, f"{query.where}: its text names others"


# -- without a server


def test_every_series_of_ours_that_is_asked_for_is_exported_and_the_other_way_round():
    ours = declared()
    asked: set[str] = set()
    for query in (*panel_queries(), *rule_queries()):
        expr = query.parsed()
        names = {s.name for s in selectors(expr) if s.name.startswith("sglang:marconi_")}
        asked |= names
        if names and names == {s.name for s in selectors(expr)}:
            check(query, ours)
    assert len(ours) > 15 and asked == set(ours)


def test_a_check_refuses_what_does_not_exist():
    ours = declared()
    for text, shown in (
        ("sglang:marconi_hits_total", ""),
        ("sglang:marconi_hit_tokens", ""),
        ('sglang:marconi_hit_tokens_total{pool="kv"}', ""),
        ('sglang:marconi_hit_tokens_total{tp_rank="1"}', ""),
        ("sum by (reason) (rate(sglang:marconi_victims_total[5m]))", ""),
        ("sum by (pool) (rate(sglang:marconi_victims_total[5m]))", "reason"),
    ):
        with pytest.raises(AssertionError):
            check(Query(text, text, frozenset(shown.split())), ours)
    check(
        Query("", "sum by (pool, job) (rate(sglang:marconi_victims_total[5m]))", frozenset()), ours
    )


def test_counters_are_read_through_rates_which_a_restart_does_not_fool():
    for query in (*panel_queries(), *rule_queries()):
        assert not raw_counters(query.parsed()), f"{query.where} reads a counter as it stands"
    young = "(a_total unless a_total offset 1h) or increase(a_total[1h])"
    assert not raw_counters(promql.parse(young))
    assert raw_counters(promql.parse(young.replace("increase(a_total[1h])", "a_total")))
    assert raw_counters(promql.parse("sum(a_total) > 0"))


def raw_counters(expr: Any) -> list[str]:
    """Counters read neither over a range nor as `(x unless x offset w) or increase(x[w])`."""
    match expr:
        case promql.MatrixSelector():
            return []
        case promql.VectorSelector():
            return [expr.name] if is_counter(expr.name) else []
        case promql.BinaryExpr() if str(expr.op) == "or" and has_young_guard(expr):
            return []
        case _:
            return [name for child in children(expr) for name in raw_counters(child)]


def has_young_guard(expr: Any) -> bool:
    guard = expr.lhs.expr if isinstance(expr.lhs, promql.ParenExpr) else expr.lhs
    if not isinstance(guard, promql.BinaryExpr) or str(guard.op) != "unless":
        return False
    if not isinstance(expr.rhs, promql.Call) or expr.rhs.func.name != "increase":
        return False
    (later,) = expr.rhs.args
    window = promql.display_duration(later.range)
    return (
        str(guard.lhs) == str(later.vector_selector)
        and str(guard.rhs) == f"{guard.lhs} offset {window}"
    )


def is_counter(name: str) -> bool:
    return name.endswith(("_total", "_bucket", "_sum", "_count"))


def test_every_alert_says_what_it_means_and_what_to_do():
    assert len(alerts()) == len({alert["alert"] for alert in alerts()}) >= 6
    for alert in alerts():
        assert alert["labels"] == {"severity": "warning"}
        notes = alert["annotations"]
        assert set(notes) == {"summary", "description", "runbook"}
        assert "{{ $labels.instance }}" in notes["summary"] and len(notes["description"]) > 100
        assert re.fullmatch(r"docs/troubleshooting\.md#[a-z-]+", notes["runbook"])


def test_every_runbook_is_a_heading_of_its_page():
    for alert in alerts():
        page, anchor = alert["annotations"]["runbook"].split("#")
        if not (REPOSITORY / page).exists():
            pytest.skip(f"there is no {page}")
        text = (REPOSITORY / page).read_text()
        headings = re.findall(r"^#+ (.*?)(?: *\{.*\})?$", text, re.MULTILINE)
        slugs = {re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") for heading in headings}
        named = re.findall(r"""(?:\{ *#|\bid=["'])([\w-]+)""", text)
        assert anchor in slugs | set(named), alert["alert"]


def test_every_alert_has_a_case_in_which_it_fires():
    text = RULES_TEST.read_text()
    for alert in alerts():
        assert f'ALERTS{{alertname="{alert["alert"]}", alertstate="firing"' in text or (
            f"alertname: {alert['alert']}\n" in text
        ), alert["alert"]


def test_promtool_accepts_the_rules_and_their_unit_tests():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH (Debian: apt-get install prometheus)")
    for command in (
        ["check", "config", SCRAPE.name],
        ["check", "rules", RULES.name],
        ["test", "rules", RULES_TEST.name],
    ):
        done = subprocess.run(
            [promtool, *command], cwd=MONITORING, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_is_whole():
    """What Grafana's import wants: one datasource variable, used everywhere, and panels apart."""
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["schemaVersion"] >= 39 and 8 <= len(dashboard["uid"]) <= 40
    assert "id" not in dashboard, "an id is of one Grafana alone"
    variables = {v["name"]: v for v in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert {"model_name", "instance"} <= set(variables)
    source = {"type": "prometheus", "uid": "${datasource}"}
    for name in ("model_name", "instance"):
        assert variables[name]["datasource"] == source
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["datasource"] == source and panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(letters) == len(set(letters)) > 0
        for target in panel["targets"]:
            assert target["datasource"] == source
            for variable in re.findall(r"\$(\w+)", target["expr"]):
                assert variable in variables or f"${variable}" in DURATIONS, panel["title"]
            for selector in selectors(Query("", target["expr"], frozenset()).parsed()):
                chosen = {m.name: m.value for m in selector.matchers.matchers}
                assert chosen["model_name"] == "$model_name", panel["title"]
                assert chosen["instance"] == "$instance", panel["title"]


def test_the_dashboards_variables_come_from_a_series_that_a_stock_server_has():
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            assert "label_values(sglang:token_usage" in variable["query"]


@pytest.mark.parametrize("version", ACCEPTED)
def test_prometheus_stores_the_names_that_are_asked_for(version):
    """The Python client writes other names to some versions; the scrape config puts them right."""
    encode, _ = choose_encoder(ACCEPTED[version])
    lines = encode(all_counted()).decode().splitlines()
    sent = {re.split(r"[{ ]", line)[0] for line in lines if not line.startswith("#")}
    (job,) = yaml.safe_load(SCRAPE.read_text())["scrape_configs"]
    (relabel,) = job["metric_relabel_configs"]
    assert relabel["source_labels"] == ["__name__"] and relabel["target_label"] == "__name__"
    template = relabel["replacement"].replace("$1", r"\1")
    stored = {re.sub(f"^(?:{relabel['regex']})$", template, name) for name in sent}
    assert {name for name in stored if not name.endswith("_created")} == set(declared())


# -- with a server


@pytest.mark.server
def test_a_live_server_exports_all_that_is_asked_for():
    rng = random.Random(5)
    arguments = ("--enable-metrics", *POOLS, *TUNING)
    with launch_server(tiny_model("qwen3-next"), *arguments) as server:
        for prompts in (recent_sessions(rng, 120), long_documents(rng, 40)):
            for prompt in prompts:
                server.generate(prompt, max_new_tokens=2)
        live = series_of(server.metrics())
    ours = {name for name in live if name.startswith("sglang:marconi_")}
    absent = set(declared()) - ours
    assert absent <= MAY_NEVER_COME, absent
    assert ours <= set(declared())
    known = {**declared(), **live, **recorded()}
    for query in (*panel_queries(), *rule_queries()):
        check(query, known)
    for series in tested_series():
        assert {m.name for m in series.matchers.matchers} - SCRAPE_LABELS <= set(
            known[series.name][0]
        ), f"the rules' unit tests invent {series}"
    for name, these in declared().items():
        assert name in absent or set(live[name][0]) == set(these[0]), name
    # Grafana's variable is filled from SGLang's label and must choose our series too.
    models = {labels["model_name"] for labels in live["sglang:token_usage"]}
    assert {labels["model_name"] for name in ours for labels in live[name]} == models
