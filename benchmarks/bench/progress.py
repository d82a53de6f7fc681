"""How far a measurement is, by its time: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time

from medclipsam.engine.run.progress import say, unheard


class Steps:
    """A bar that fills with the time; a context manager.

    Args:
        budget: seconds that all will take, about.
    """

    def __init__(self, budget: float):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self._lines = not console.is_terminal
        self._begun, self._said = time.monotonic(), ""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn(f"of about {budget / 60:.3g} min"),
            console=console,
            disable=self._lines,
            get_time=time.monotonic,
        )
        self._task = self._bar.add_task("", total=budget)

    def __enter__(self) -> Steps:
        with unheard():
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        with unheard():
            self._bar.stop()

    def tell(self, text: str) -> None:
        """What is done from now on."""
        spent = time.monotonic() - self._begun
        with unheard():
            self._bar.update(self._task, completed=spent, description=text)
        if self._lines and text != self._said:
            self._said = text
            say(f"{spent:.0f} s: {text}", err=True)
