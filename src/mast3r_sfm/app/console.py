"""What a person at the shell sees: progress bars, warnings, the table at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from mast3r_sfm.app.flags import as_flags

console = Console(stderr=True, highlight=False)
"""Everything but a command's result goes to the standard error stream."""


class WarningCollector(logging.Handler):
    """Shows log records on the console and keeps the warnings for `run.json`."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = as_flags(record.getMessage())
        if record.levelno >= logging.WARNING:
            self.warn(message)
        else:
            console.print(f"[dim]{record.name}: {_plain(message)}[/dim]", soft_wrap=True)

    def warn(self, message: str) -> None:
        """A warning of the command line's own."""
        self.messages.append(message)
        warn(message)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")  # file names are not markup


@contextmanager
def logging_to_console(debug: bool) -> Iterator[WarningCollector]:
    """Routes the library's log records to the console inside."""
    collector = WarningCollector()
    logger = logging.getLogger("mast3r_sfm")
    before = logger.level, logger.propagate
    logger.addHandler(collector)
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)
    logger.propagate = False
    try:
        yield collector
    finally:
        logger.removeHandler(collector)
        logger.setLevel(before[0])
        logger.propagate = before[1]


LINE_EVERY_S = 30.0


class _ServerLog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        console.print(f"[dim]{record.name}:[/dim] {_plain(self.format(record))}", soft_wrap=True)


@contextmanager
def server_log(debug: bool) -> Iterator[None]:
    """Shows errors inside, with their tracebacks, and what goes on for `debug`. Warnings belong to the jobs."""
    handler = _ServerLog(logging.DEBUG if debug else logging.ERROR)
    library, own = logging.getLogger("mast3r_sfm"), logging.getLogger("uvicorn")
    before = library.level, library.propagate, own.propagate
    for logger in (library, own):
        logger.addHandler(handler)
        logger.propagate = False
    library.setLevel(logging.DEBUG if debug else logging.WARNING)
    try:
        yield
    finally:
        for logger in (library, own):
            logger.removeHandler(handler)
        library.setLevel(before[0])
        library.propagate, own.propagate = before[1:]


class ProgressDisplay:
    """Where every stage is, with the time left; an instance is a `progress.Progress`.

    Bars on a terminal. Elsewhere, as in a log file, a line when a stage ends, and one every `LINE_EVERY_S` before that.
    """

    def __init__(self, quiet: bool) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._lines = not quiet and not console.is_terminal
        self._task_of: dict[str, TaskID] = {}
        self._start_s = self._line_s = 0.0

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._bars.start()
        if done == 0 or stage not in self._task_of:  # a stage that begins again, on another try, has a bar of its own
            self._task_of[stage] = self._bars.add_task(stage, total=total)
            self._start_s = self._line_s = time.monotonic()
        self._bars.update(self._task_of[stage], completed=done)
        now_s = time.monotonic()
        if self._lines and (done == total or now_s - self._line_s >= LINE_EVERY_S):
            console.print(f"{stage:<24} {done}/{total} after {now_s - self._start_s:.0f} s", soft_wrap=True)
            self._line_s = now_s


def say(message: str, quiet: bool = False) -> None:
    """A line for the person at the shell."""
    if not quiet:
        console.print(_plain(message), soft_wrap=True)


def warn(message: str) -> None:
    """A warning that is of no result in particular."""
    console.print(f"[yellow]Warning:[/yellow] {_plain(message)}", soft_wrap=True)


def complain(message: str) -> None:
    """An error that does not end the command."""
    console.print(f"[red]Error:[/red] {_plain(message)}", soft_wrap=True)


def show_table(rows: dict[str, str], quiet: bool) -> None:
    """Two columns: what, and its value."""
    if quiet:
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, _plain(value))
    console.print(table)
