"""Markers: filled once and the same for ever, nothing else touched, and every mistake reported."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import command, figures, markers
from rows.figures import FigureError, printed
from rows.pages import page_files
from rows.store import MEASURED, Rows, read_rows
from rows.summary import with_summaries
from rows.tables import TABLES, lab

ROOT = Path(__file__).resolve().parents[3]
ROWS = Rows(
    {
        "speed/a-b": {
            "part": "speed",
            "id": "speed/a-b",
            "us": 52.34,
            "name": "fast",
            "in": {"n": 4},
        },
        "speed/none": {"part": "speed", "us": 0},
    }
)


def figure(text: str) -> str:
    return printed(text, ROWS)


def table(name: str) -> str:
    if name != "times":
        raise ValueError(f"there is no table {name!r}")
    return "| a | b |\n| --- | ---: |\n| x | 1 |"


# -- figures


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("speed/a-b.us", "52.3"),
        ("speed/a-b.us:.0f", "52"),
        ("speed/a-b.us:+.2f", "+52.34"),
        ("speed/a-b.in.n:d", "error"),
        ("speed/a-b.name", "fast"),
        ("speed/a-b.us - speed/a-b.in.n", "48.3"),
        ("speed/a-b.us / speed/a-b.in.n:.3f", "13.085"),
        ("speed/none.us - speed/none.us:+.1f", "+0.0"),
        ("speed/a-b.us\n-  speed/a-b.us", "0.0"),
    ],
)
def test_a_figure_is_printed_by_its_format(text: str, expected: str) -> None:
    if expected == "error":
        with pytest.raises(FigureError, match="Unknown format code"):
            figure(text)
    else:
        assert figure(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("speed/a-b", "is no figure"),
        ("speed/a-b.us - 3", "is no figure"),
        ("speed/z.us", "no row has the id 'speed/z'"),
        ("speed/a-b.ms", "has no 'ms'"),
        ("speed/a-b.name:.1f", "no number"),
        ("speed/a-b.us / speed/none.us", "division by zero"),
    ],
)
def test_a_figure_that_cannot_be_printed_says_why(text: str, reason: str) -> None:
    with pytest.raises(FigureError, match=reason):
        figure(text)


def test_nothing_is_printed_as_minus_nothing() -> None:
    assert figures.number_text(-0.04, ".1f") == "0.0"
    assert figures.number_text(-0.04, "+.1f") == "+0.0"
    assert figures.number_text(-0.06, ".1f") == "-0.1"


# -- markers

WORDS = st.text(st.sampled_from("ab c.|`*<>-!\n#"), max_size=30)
FIGURE = "<!-- figure: speed/a-b.us -->{}<!-- end -->"
TABLE = "\n<!-- table: times -->\n{}<!-- end table -->\n"


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("word " + FIGURE), st.text("0123456789. ", max_size=8)),
            st.tuples(st.just(TABLE), st.sampled_from(["", "\n| old |\n\n", "text\n"])),
        ),
        max_size=4,
    ),
    st.lists(WORDS.filter(lambda text: "<!--" not in text and "```" not in text), min_size=5),
)
def test_pages_are_filled_once_and_nothing_else_is_touched(
    placed: list[tuple[str, str]], words: list[str]
) -> None:
    pieces = [(marker, body, word) for (marker, body), word in zip(placed, words, strict=False)]
    safe = [(marker, body, word.replace("`", "")) for marker, body, word in pieces]
    page = "start\n" + "".join(marker.format(body) + word for marker, body, word in safe)
    filled = markers.updated(page, table, figure)
    expected = "start\n" + "".join(
        marker.format("52.3" if "figure" in marker else f"\n{table('times')}\n\n") + word
        for marker, _, word in safe
    )
    assert filled.text == expected
    again = markers.updated(filled.text, table, figure)
    assert again.text == filled.text
    assert again.differing == ()


def test_what_differs_is_named_with_its_line() -> None:
    page = "a\n\n<!-- table: times -->\n\n| old |\n\n<!-- end table -->\n\nIt is " + FIGURE.format(
        "1"
    )
    filled = markers.updated(page, table, figure)
    assert filled.differing == ("table times, line 3", "figure speed/a-b.us, line 9")
    assert filled.problems == ()


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("x <!-- figure: speed/a-b.us -->52.3", "line 1: a figure without <!-- end -->"),
        ("<!-- table: times -->\n", "line 1: a table without <!-- end table -->"),
        ("\n" + FIGURE.format(""), "line 2: a figure begins the line"),
        ("- " + FIGURE.format(""), "line 1: a figure begins the line"),
        ("x <!-- figure: speed/z.us --><!-- end -->", "line 1: 'speed/z.us': no row has the id"),
        ("<!-- table: other -->\n<!-- end table -->", "line 1: there is no table 'other'"),
        (
            "<!-- table: times -->\n<!-- table: times -->\n<!-- end table -->",
            "line 1: a table without <!-- end table -->",
        ),
    ],
)
def test_markers_that_cannot_be_filled_are_reported(page: str, problem: str) -> None:
    problems = markers.updated(page, table, figure).problems
    assert len(problems) == 1
    assert problems[0].startswith(problem)


@pytest.mark.parametrize(
    "page",
    [
        "```\n" + FIGURE.format("") + "\n" + TABLE.format("") + "```\n",
        "    ~~~~\n" + FIGURE.format("") + "\n    ~~~~\n",
        "see `" + FIGURE.format("") + "`",
    ],
)
def test_code_is_left_as_it_is(page: str) -> None:
    filled = markers.updated(page, table, figure)
    assert filled == markers.Updated(page, (), ())


# -- the command


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    measured = ", ".join(f'"{name}": "some text"' for name in MEASURED)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "unified.jsonl").write_text(
        '{"part": "unified", "id": "unified/lru", "flops_saved": 71.37, "token_hit_rate": 73.12, '
        f'"measured": {{{measured}}}}}\n'
    )
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text(
        "It saves <!-- figure: unified/lru.flops_saved -->70.0<!-- end --> %.\n\n"
        "<!-- table: unified -->\n<!-- end table -->\n"
    )
    return tmp_path


def test_a_page_that_differs_fails_the_check_by_name(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = repository / "docs" / "page.md"
    before = page.read_text()
    assert command.main(["--root", str(repository), "pages", "--check"]) == 1
    told = capsys.readouterr().err
    assert "docs/page.md: figure unified/lru.flops_saved, line 1 differs from the rows" in told
    assert "docs/page.md: table unified, line 3 differs from the rows" in told
    assert page.read_text() == before

    command.main(["--root", str(repository), "pages"])
    capsys.readouterr()
    assert (
        "It saves <!-- figure: unified/lru.flops_saved -->71.4<!-- end --> %." in page.read_text()
    )
    assert "| SGLang's LRU | 71.4 | 73.1 |" in page.read_text()
    command.main(["--root", str(repository), "pages", "--check"])
    assert "page.md" not in capsys.readouterr().err


def test_a_corrupt_row_fails_the_check_with_its_place(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = repository / "results" / "unified.jsonl"
    rows.write_text(rows.read_text() + "{half\n")
    assert command.main(["--root", str(repository), "pages", "--check"]) == 1
    assert f"{rows}:2: no JSON" in capsys.readouterr().err


# -- tables of cells


def test_a_line_with_gaps_is_left_out() -> None:
    known = {"part": "policies", "token_hit_rate": 50.0}
    cells = {f"policies/tau-airline/middle/{name}": known for name in lab.MAIN}
    half = {f"policies/tau-airline/ample/{name}": known for name in ("lru", "policy-3")}
    rows = Rows({identity: {**row, "id": identity} for identity, row in {**cells, **half}.items()})
    lines = lab.policies_hits(rows).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["middle, 5.19 GiB"]
    with pytest.raises(ValueError, match="no cell has 'flops_saved' under all of lru"):
        lab.policies(rows)


# -- this repository


def test_every_marker_of_the_repository_resolves() -> None:
    rows = with_summaries(read_rows(ROOT / "results"))
    for path in page_files(ROOT):
        text = path.read_text(encoding="utf-8")
        for one in markers.figures(text):
            assert printed(one, rows), f"{path}: {one}"
        unknown = set(markers.tables(text)) - TABLES.keys() - {"age"}
        assert not unknown, f"{path}: {unknown}"
