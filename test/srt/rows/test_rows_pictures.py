"""Pictures: the same rows make the same bytes, and a picture of other rows is noticed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows.pictures import PICTURES, Documented, drawn
from rows.pictures.panels import spread
from rows.store import Rows, read_rows
from rows.summary import with_summaries
from rows.tables import TABLES

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def rows() -> Rows:
    return with_summaries(read_rows(ROOT / "results"))


@pytest.mark.parametrize("picture", PICTURES, ids=[one.name for one in PICTURES])
def test_the_same_rows_make_the_same_bytes(picture: Documented, rows: Rows) -> None:
    data = picture.data(rows)
    first = picture.svg(data)
    assert first == picture.svg(data)
    assert picture.digest(data).encode() in first
    assert b"<svg" in first


def test_a_picture_of_other_rows_is_noticed(tmp_path: Path, rows: Rows) -> None:
    picture = PICTURES[0]
    data = picture.data(rows)
    path = tmp_path / picture.path()
    path.parent.mkdir(parents=True)
    path.write_bytes(picture.svg(data))
    found = {one.path: one for one in drawn(tmp_path, rows, check=True)}
    assert found[picture.path()].differing == ()
    path.write_bytes(path.read_bytes().replace(picture.digest(data).encode(), b"0" * 24))
    found = {one.path: one for one in drawn(tmp_path, rows, check=True)}
    assert found[picture.path()].differing == ("picture",)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_can_be_made(name: str, rows: Rows) -> None:
    lines = TABLES[name](rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) > 2


NAMES = st.dictionaries(st.sampled_from("abcdefg"), st.floats(0, 1), min_size=1)


@given(NAMES)
def test_labels_keep_their_order_and_distance(places: dict[str, float]) -> None:
    found = spread(places, 0.1, 0.0, 1.0)
    order = sorted(places, key=lambda name: places[name])
    heights = [found[name] for name in order]
    assert all(upper - lower > 0.0999 for lower, upper in pairwise(heights))
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in heights)


def test_labels_that_do_not_touch_stay_where_they_are() -> None:
    places = {"a": 0.1, "b": 0.5, "c": 0.9}
    assert spread(places, 0.1, 0.0, 1.0) == pytest.approx(places)
