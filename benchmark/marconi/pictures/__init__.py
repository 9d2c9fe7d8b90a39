"""Pictures of the simulator's result rows, and the report that holds them.

``read_rows`` reads, ``draw_all`` draws, ``write_report`` writes.
"""

from pictures.catalogue import draw_all
from pictures.common import Absent, Picture
from pictures.report import write_report
from pictures.rows import Row, RowError, read_rows

__all__ = ["Absent", "Picture", "Row", "RowError", "draw_all", "read_rows", "write_report"]
