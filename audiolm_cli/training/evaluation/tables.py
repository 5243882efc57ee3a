"""Tables of figures, printed and as JSON."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from audiolm_cli.training.measures.measures import Figure

Table = dict[str, dict[str, Any]]  # row -> column -> number or Figure


def show(title: str, table: Table) -> None:
    """Prints a table on stdout."""
    from rich.console import Console
    from rich.table import Table as RichTable

    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    rich = RichTable("", *columns, title=title, title_justify="left")
    for name, row in table.items():
        rich.add_row(name, *(_cell(row.get(column)) for column in columns))
    Console(width=None if sys.stdout.isatty() else 200).print(rich)


def _cell(value: Any) -> str:
    if isinstance(value, Figure):
        return f"{value.mean:.3f} ({value.low:.3f}-{value.high:.3f})"
    return "" if value is None else str(value) if isinstance(value, (int, str)) else f"{value:.3f}"


def plain(value: Any) -> Any:
    """Figures as objects with names, for JSON; NaN becomes null."""
    if isinstance(value, Figure):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value
