"""The pictures of the documentation, drawn from its rows; each says in itself what it was drawn of.

A picture's file holds a digest of its data and of the code that draws it. Whether a file is as its
rows have it is read off that, so that no machine has to draw the same bytes as another.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rows.pages import Outcome
from rows.pictures import saved_at_sizes, saved_by_memory, speed_by_nodes, tokens_lost
from rows.store import Rows

_DIGEST = re.compile(rb"drawn of ([0-9a-f]{24})")


@dataclass(frozen=True)
class Documented:
    """One picture.

    Attributes:
        name: of its file in ``docs/images``.
        data: what is drawn, as plain values; raises ``ValueError`` where rows are missing.
        draw: makes a figure of it.
        code: files that draw it.
    """

    name: str
    data: Callable[[Rows], Any]
    draw: Callable[[Any], Any]
    code: tuple[Path, ...]

    def path(self) -> str:
        """From the root of the repository."""
        return f"docs/images/{self.name}.svg"

    def digest(self, data: Any) -> str:
        """Of all that decides what the picture looks like, but for Matplotlib itself."""
        found = hashlib.blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=12)
        for path in self.code:
            found.update(path.read_bytes())
        return found.hexdigest()

    def svg(self, data: Any) -> bytes:
        """The picture's file."""
        from matplotlib import rc_context

        from rows.pictures.panels import SETTINGS

        with rc_context(SETTINGS):
            buffer = io.BytesIO()
            about = {"Date": None, "Creator": None, "Description": f"drawn of {self.digest(data)}"}
            self.draw(data).savefig(buffer, format="svg", metadata=about)
        return re.sub(rb"[ \t]+\n", b"\n", buffer.getvalue())


def _documented(module: Any) -> Documented:
    here = Path(__file__).parent
    return Documented(
        module.NAME, module.data, module.draw, (Path(module.__file__), here / "panels.py")
    )


PICTURES = tuple(map(_documented, (saved_by_memory, saved_at_sizes, tokens_lost, speed_by_nodes)))


def drawn(root: Path, rows: Rows, *, check: bool) -> Iterator[Outcome]:
    """Every picture, with new content where its file was drawn of something else.

    Args:
        check: draw nothing, only say which differ.
    """
    for picture in PICTURES:
        path = root / picture.path()
        try:
            data = picture.data(rows)
        except ValueError as error:
            yield Outcome(picture.path(), b"", (), (str(error),))
            continue
        found = _DIGEST.search(path.read_bytes()) if path.exists() else None
        if found is not None and found[1].decode() == picture.digest(data):
            yield Outcome(picture.path(), b"", (), ())
        else:
            content = b"" if check else picture.svg(data)
            yield Outcome(picture.path(), content, ("picture",), ())
