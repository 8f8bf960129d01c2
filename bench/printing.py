"""What a bench prints at its end."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import rich.box
import rich.console
import rich.table

from bench.server.report import Table


def print_tables(facts: Mapping[str, str], notes: Sequence[str], tables: Sequence[Table]) -> None:
    """The machine, what is to be said of the run, and the tables in Markdown."""
    console = rich.console.Console(width=None if sys.stdout.isatty() else 240, highlight=False)
    console.print("; ".join(f"{name} {fact}" for name, fact in facts.items()))
    for note in notes:
        console.print(note)
    for table in tables:
        shown = rich.table.Table(*table.columns, box=rich.box.MARKDOWN)
        for row in table.rows:
            shown.add_row(*row)
        console.print(f"\n## {table.title}\n", markup=False)
        console.print(shown)
