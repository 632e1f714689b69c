"""The one thread that reconstructs, with the model that stays loaded."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from mast3r_sfm.app.flags import as_options
from mast3r_sfm.app.requests import ModelRequest
from mast3r_sfm.app.scene import WRITING, reconstruct_scene, state_folder
from mast3r_sfm.app.serve.jobs import PHOTOS, RESULT, Job, Jobs, State, outcome_of
from mast3r_sfm.app.serve.options import JobOptions
from mast3r_sfm.app.serve.uploads import CHECKING
from mast3r_sfm.errors import Mast3rSfmError
from mast3r_sfm.export.result import is_result
from mast3r_sfm.model.checkpoint import Model
from mast3r_sfm.options import ServeLimits
from mast3r_sfm.pair_store import PairStore

logger = logging.getLogger(__name__)

_MAX_WARNINGS = 100
_OWN = "mast3r_sfm.app.serve"


class _CancelledError(Exception):
    """The client does not want the result any more."""


class _OutOfTimeError(Exception):
    """The job takes longer than it may."""


class _ServerEndsError(Exception):
    """The job is to be taken up by the next server."""


@dataclass
class Stage:
    """A stage of the running job: steps done, all steps, when it began, and its seconds once it is over."""

    name: str
    done: int
    total: int
    began: float = field(default_factory=monotonic)
    seconds: float | None = None

    def described(self) -> dict[str, Any]:
        seconds = monotonic() - self.began if self.seconds is None else self.seconds
        return {"stage": self.name, "done": self.done, "total": self.total, "seconds": round(seconds, 3)}


class Watch:
    """Where the running job is; an instance is a `progress.Progress`, and raises what is to end the job."""

    def __init__(self, job_id: str, max_seconds: float) -> None:
        self.job_id = job_id
        self.removed = False
        self._deadline = monotonic() + max_seconds
        self._end: type[Exception] | None = None  # not an exception itself, which would keep what it went through
        self._stages: list[Stage] = []

    def end(self, why: type[Exception]) -> None:
        """The next step is the last; the first reason counts."""
        self._end = self._end or why

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != WRITING or done < total:  # what is written is not thrown away any more
            self._raise_if_ended()
        if done == 0 or not self._stages or self._stages[-1].name != stage:
            self._stages.append(Stage(stage, done, total))
        self._stages[-1].done = done
        if done >= total:
            self._stages[-1].seconds = monotonic() - self._stages[-1].began

    def _raise_if_ended(self) -> None:
        if self._end is not None:
            raise self._end
        if monotonic() > self._deadline:
            raise _OutOfTimeError

    def described(self) -> list[dict[str, Any]]:
        """Every stage that has begun, in order."""
        return [stage.described() for stage in list(self._stages)]


class Worker:
    """Carries out the jobs, one after the other, in a thread of its own.

    model, request  the loaded model, and the request that it was loaded by
    """

    def __init__(self, jobs: Jobs, model: Model, request: ModelRequest, limits: ServeLimits) -> None:
        self._jobs = jobs
        self._model = model
        self._request = request
        self._limits = limits
        self._watch: Watch | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="worker")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the running job at its next step, to be taken up by the next server, and waits for the thread."""
        self._jobs.close()
        with self._lock:
            if self._watch is not None:
                self._watch.end(_ServerEndsError)
        if self._thread.ident is not None:
            self._thread.join()

    def progress(self, job_id: str) -> list[dict[str, Any]] | None:
        """The stages of the job if it is the running one."""
        watch = self._watch
        return watch.described() if watch is not None and watch.job_id == job_id else None

    def cancel(self, job_id: str) -> None:
        """Ends a job that waits now, and one that runs at its next step; others stay as they are."""
        if self._jobs.cancel_waiting(job_id):
            self._drop_photos(job_id)
            return
        with self._lock:
            if self._watch is not None and self._watch.job_id == job_id:
                self._watch.end(_CancelledError)

    def remove(self, job_id: str) -> None:
        """Ends the job if need be, and deletes all that there is of it."""
        self._jobs.cancel_waiting(job_id)
        with self._lock:
            watch = self._watch if self._watch is not None and self._watch.job_id == job_id else None
            if watch is not None:
                watch.removed = True
                watch.end(_CancelledError)
        self._jobs.forget(job_id)
        if watch is None:
            self._jobs.delete_folder(job_id)

    def _work(self) -> None:
        while (job := self._jobs.next(self._begin)) is not None:
            watch = self._watch
            assert watch is not None
            try:
                self._carry_out(job, watch)
            except Exception:  # of noting how it ended; the thread has to live
                logger.exception("job %s has no proper end", job.id)
            with self._lock:
                self._watch = None
            if watch.removed:
                self._jobs.delete_folder(job.id)

    def _begin(self, job: Job) -> None:
        with self._lock:
            self._watch = Watch(job.id, 60.0 * self._limits.max_minutes)

    def _carry_out(self, job: Job, watch: Watch) -> None:
        folder = self._jobs.folder(job.id)
        result = folder / RESULT

        def fail(error: str) -> None:
            """If the error left a result, as one of a single export does, the job is done all the same."""
            said = {"error": for_clients(error, folder), "warnings": tuple(warnings)}
            if is_result(result):
                self._jobs.finish(job.id, State.DONE, outcome=outcome_of(result), **said)
            else:
                self._jobs.finish(job.id, State.FAILED, **said)

        with _warnings_of_job(folder) as warnings:
            try:
                options = JobOptions.model_validate(job.options)
                request = options.request(folder / PHOTOS, self._request, self._limits)
                written = reconstruct_scene(
                    request,
                    result,
                    lambda: self._model,
                    watch,
                    warnings,
                    lambda line: logger.debug("%s", line),
                )
                self._jobs.finish(
                    job.id,
                    State.DONE,
                    outcome=outcome_of(result),
                    seconds={**job.seconds, **written.seconds},
                    error=None if written.misplaced is None else for_clients(str(written.misplaced), folder),
                    warnings=tuple(warnings),
                )
            except _CancelledError:
                self._drop_photos(job.id)
                self._jobs.finish(job.id, State.CANCELLED)
            except _OutOfTimeError:
                fail(f"it took longer than {self._limits.max_minutes} minutes, the most that the server allows")
            except _ServerEndsError:
                self._jobs.put_back(job.id)
            except Mast3rSfmError as error:
                fail(str(error))
            except Exception as error:
                logger.exception("job %s failed", job.id)
                fail(f"unexpected {type(error).__name__}; the server's messages say more")
        ended = self._jobs.get(job.id)
        if ended is None or ended.state.is_final:  # else the next server goes on from the pairs that are kept
            PairStore(state_folder(result)).delete()

    def _drop_photos(self, job_id: str) -> None:
        shutil.rmtree(self._jobs.folder(job_id) / PHOTOS, ignore_errors=True)


def for_clients(message: str, folder: Path) -> str:
    """In the words of the API, and without the places where the server keeps its files.

    folder  of the job
    """
    message = as_options(message)
    for place in (folder.resolve(), folder):  # messages have the one or the other
        message = message.replace(f"{place / PHOTOS}/", "").replace(f"{place}/", "")
        message = message.replace(str(place), "the server's folder")
    return message


class _Warnings(logging.Handler):
    def __init__(self, folder: Path) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self._folder = folder

    def emit(self, record: logging.LogRecord) -> None:
        of_the_job = not record.name.startswith(_OWN) and not (record.threadName or "").startswith(CHECKING)
        if of_the_job and len(self.messages) < _MAX_WARNINGS:
            self.messages.append(for_clients(record.getMessage(), self._folder))


@contextmanager
def _warnings_of_job(folder: Path) -> Iterator[list[str]]:
    """The list of what the library warns of inside, but not of photos that are being uploaded meanwhile."""
    handler, library = _Warnings(folder), logging.getLogger("mast3r_sfm")
    library.addHandler(handler)
    try:
        yield handler.messages
    finally:
        library.removeHandler(handler)
