"""The paper's engine against golden data of the published simulator, request by request."""

from __future__ import annotations

import json
import lzma
import os
import shutil
from pathlib import Path

import check_golden
import pytest
from paper.golden import GoldenError, check_result_file, result_files

HERE = Path(__file__).parent
TINY = HERE / "golden_tiny"
# The golden folder holds traces too large for the repository.
GOLDEN = Path(os.environ.get("MARCONI_GOLDEN", HERE.parents[2] / "shared" / "golden"))
ELSEWHERE = sorted(
    path for path in (GOLDEN / "results").glob("*.json.xz") if not path.name.startswith("tiny.")
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A golden folder with one small result file of two runs, free to be damaged."""
    shutil.copytree(TINY / "traces", tmp_path / "traces")
    (tmp_path / "results").mkdir()
    golden = json.loads(lzma.decompress((TINY / "results" / "tiny.corrected.json.xz").read_bytes()))
    golden["runs"] = [run for run in golden["runs"] if run["policy"] in ("vllm", "v1")][:2]
    _write(tmp_path / "results" / "tiny.corrected.json.xz", golden)
    return tmp_path


def _write(path: Path, golden: dict) -> None:
    path.write_bytes(lzma.compress(json.dumps(golden).encode()))


def _edit(folder: Path, change) -> None:
    path = folder / "results" / "tiny.corrected.json.xz"
    golden = json.loads(lzma.decompress(path.read_bytes()))
    change(golden)
    _write(path, golden)


@pytest.mark.parametrize("path", result_files(TINY), ids=lambda path: path.name)
def test_the_tiny_set_is_reproduced(path):
    report = check_result_file(TINY, path)
    assert (report.compared, report.differences, report.errors) == (27, [], [])


@pytest.mark.skipif(not ELSEWHERE, reason="no golden folder")
@pytest.mark.parametrize("path", ELSEWHERE, ids=lambda path: path.name)
def test_the_golden_folder_is_reproduced(path):
    report = check_result_file(GOLDEN, path)
    assert report.compared > 0
    assert (report.differences, report.errors) == ([], [])


def test_equal_runs_give_exit_code_zero(folder, capsys):
    assert check_golden.main([str(folder)]) == 0
    assert capsys.readouterr().out.endswith("runs compared 2, runs that differ 0\n")


def test_jobs_give_the_same_totals(folder, capsys):
    assert check_golden.main([str(folder), "--jobs", "2"]) == 0
    assert capsys.readouterr().out.endswith("runs compared 2, runs that differ 0\n")


def _matched(golden):
    golden["runs"][1]["per_request"]["matched"][40] += 1


def _victim(golden):
    golden["runs"][1]["evictions"]["last_access"][5] += 1


def _one_victim_less(golden):
    for column in golden["runs"][1]["evictions"].values():
        column.pop()


def _flops(golden):
    golden["runs"][1]["summary"]["flops_saved_attn"] += 1


def _tree(golden):
    golden["runs"][1]["final_tree"][2][1] += 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_matched, "request 40: matched: golden 2, ours 1"),
        (_victim, "request 11: victim's last_access: golden"),
        (_one_victim_less, "request 599: victims: golden has 815 entries, ours 816"),
        (_flops, "summary: flops_saved_attn: golden"),
        (_tree, "final tree: node 2 in pre-order: golden"),
    ],
)
def test_a_difference_is_found_and_named(folder, capsys, change, expected):
    _edit(folder, change)
    assert check_golden.main([str(folder)]) == 1
    out = capsys.readouterr().out
    assert f"tiny.corrected v1 at 0.3 GB: {expected}" in out
    assert out.endswith("runs compared 2, runs that differ 1\n")


def test_the_earliest_difference_of_a_run_is_the_one_named(folder, capsys):
    _edit(folder, lambda golden: (_flops(golden), _victim(golden), _matched(golden)))
    check_golden.main([str(folder)])
    out = capsys.readouterr().out
    assert "request 11: victim's last_access" in out
    assert "request 40" not in out


def test_a_run_under_the_wrong_mode_differs():
    published = json.loads(
        lzma.decompress((TINY / "results" / "tiny.as_published.json.xz").read_bytes())
    )
    corrected = json.loads(
        lzma.decompress((TINY / "results" / "tiny.corrected.json.xz").read_bytes())
    )
    scored = [run for run in published["runs"] if run["policy"] in ("v2", "v3")]
    others = [run for run in corrected["runs"] if run["policy"] in ("v2", "v3")]
    assert all(a["evictions"] != b["evictions"] for a, b in zip(scored, others, strict=True))


def test_a_corrupt_trace_line_is_named_and_the_rest_goes_on(folder, capsys):
    lines = lzma.decompress((folder / "traces" / "tiny.jsonl.xz").read_bytes()).splitlines()
    lines[6] = lines[6][:30]
    (folder / "traces" / "broken.jsonl.xz").write_bytes(lzma.compress(b"\n".join(lines)))
    results = folder / "results"
    shutil.copy(results / "tiny.corrected.json.xz", results / "broken.corrected.json.xz")
    assert check_golden.main([str(folder)]) == 1
    out = capsys.readouterr().out
    assert "broken.jsonl.xz: line 7: " in out
    assert out.endswith("runs compared 2, runs that differ 0\n")


def test_a_cut_off_file_is_named_and_the_rest_goes_on(folder, capsys):
    results = folder / "results"
    whole = (results / "tiny.corrected.json.xz").read_bytes()
    (results / "cut.corrected.json.xz").write_bytes(whole[: len(whole) // 2])
    (results / "noise.corrected.json.xz").write_bytes(b"not xz")
    (results / "tiny.text.json.xz").write_bytes(lzma.compress(b'{"label":\n oops}'))
    (results / "tiny.list.json.xz").write_bytes(lzma.compress(b"[]"))
    (results / "lost.corrected.json.xz").write_bytes(whole)
    assert check_golden.main([str(folder)]) == 1
    out = capsys.readouterr().out
    assert "cut.corrected.json.xz: " in out
    assert "noise.corrected.json.xz: " in out
    assert "tiny.text.json.xz: line 2: " in out
    assert "tiny.list.json.xz: not a JSON object" in out
    assert "lost.jsonl.xz: after line 0: " in out
    assert out.endswith("runs compared 2, runs that differ 0\n")


def _no_summary(golden):
    del golden["runs"][0]["summary"]


def _unknown_summary(golden):
    golden["runs"][0]["summary"]["n_surprises"] = 3


def _no_matched(golden):
    del golden["runs"][0]["per_request"]["matched"]


def _unknown_policy(golden):
    golden["runs"][0]["policy"] = "v9"


def _path_index(golden):
    golden["runs"][0]["evictions"]["path"][3] = 10**9


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_no_summary, "KeyError: 'summary'"),
        (_unknown_summary, "summary: missing or unknown: n_surprises"),
        (_no_matched, "per_request: missing or unknown: matched"),
        (_unknown_policy, "'v9'"),
        (_path_index, "IndexError"),
    ],
)
def test_a_run_that_makes_no_sense_is_named_and_the_rest_goes_on(folder, capsys, change, expected):
    _edit(folder, change)
    assert check_golden.main([str(folder)]) == 1
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "tiny.corrected.json.xz: run 0: " in line]
    assert expected in line
    assert out.endswith("runs compared 1, runs that differ 0\n")


def test_only_takes_a_trace_or_one_file(capsys):
    assert [path.name for path in result_files(TINY, "tiny.corrected")] == [
        "tiny.corrected.json.xz"
    ]
    assert len(result_files(TINY, "tiny")) == 2
    with pytest.raises(GoldenError, match="for 'chat'"):
        result_files(TINY, "chat")


def test_nothing_to_compare_is_an_error(tmp_path, capsys):
    assert check_golden.main([str(tmp_path)]) == 2
    assert "results" in capsys.readouterr().err
