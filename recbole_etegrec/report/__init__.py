"""What `recbole-etegrec report` writes: one page about one or several runs.

`curves` reads a run and draws what it recorded, `ranking` loads it and looks at what it
recommends, `charts` knows how to draw, `page` puts all together.
"""

from recbole_etegrec.report.page import report

__all__ = ["report"]
