"""What an evaluation returns: values with a table that prints well at a terminal and in a notebook."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from typing import Any

from rich.console import Console
from rich.table import Table


class Result(ABC):
    """Values that show themselves as a table: by ``print(result)``, or as the last line of a notebook cell."""

    @abstractmethod
    def table(self) -> Table:
        """The values as a table."""

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=1000)
        console.print(self.table())
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in lines)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """What a notebook shows."""
        console = Console(file=io.StringIO(), record=True, width=200)
        console.print(self.table())
        page = console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
        return {"text/plain": str(self), "text/html": page}
