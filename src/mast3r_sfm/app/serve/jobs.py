"""The reconstructions of a server: a folder each, with a state that survives the server, and their order.

OUTPUT/<id>/photos/    what was uploaded
OUTPUT/<id>/result/    what `reconstruct` writes, complete or not there
OUTPUT/<id>/job.json   the state; not there while photos are being uploaded
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from mast3r_sfm.errors import InputError
from mast3r_sfm.export.files import write_json
from mast3r_sfm.export.folders import explained_writing, sibling
from mast3r_sfm.export.result import is_result, read_run

logger = logging.getLogger(__name__)

PHOTOS, RESULT, STATE = "photos", "result", "job.json"

UPLOAD = "Upload"
"""The first of a job's `seconds`."""

MAX_STARTS = 2
"""Times that a job is begun: one during which the server ended twice is perhaps why."""

_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{12}")


class State(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (State.DONE, State.FAILED, State.CANCELLED)


class TooManyWaitingError(Exception):
    """The queue is full."""


@dataclass(frozen=True)
class Job:
    """One reconstruction; `job.json` holds these fields. Times are seconds since 1970.

    photos    names of the uploaded files, in their order
    options   as the client gave them
    starts    times that it was begun
    seconds   of the upload, and of every stage of the work
    outcome   what came of it (`outcome_of`)
    error     why it failed; of one that is done, what could not be written besides
    warnings  of the work
    """

    id: str
    photos: tuple[str, ...]
    options: Mapping[str, Any]
    created: float
    state: State = State.WAITING
    starts: int = 0
    started: float | None = None
    finished: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    outcome: Mapping[str, Any] | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def submitted(self) -> float:
        """When the upload was complete."""
        return self.created + self.seconds.get(UPLOAD, 0.0)


@dataclass
class Upload:
    """A place in the queue whose photos are still coming."""

    id: str
    folder: Path
    created: float

    @property
    def photos(self) -> Path:
        return self.folder / PHOTOS


class Jobs:
    """All reconstructions in one folder, of which this process is the only owner. Safe for threads.

    max_waiting  jobs that may wait or be uploaded at a time

    Raises InputError if the folder cannot be used, or if another server uses it.
    """

    def __init__(self, folder: Path, max_waiting: int) -> None:
        self._folder = folder
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._uploads: set[str] = set()
        self._closed = False
        with explained_writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock_file = _locked(folder)
            with self._changed:
                self._take_up()

    # ------------------------------------------------------------------ what there is
    def folder(self, job_id: str) -> Path:
        return self._folder / job_id

    def get(self, job_id: str) -> Job | None:
        with self._changed:
            return self._jobs.get(job_id)

    def all(self) -> list[Job]:
        """The newest first."""
        with self._changed:
            return sorted(self._jobs.values(), key=lambda job: (job.submitted, job.id), reverse=True)

    def place_in_queue(self, job: Job) -> int | None:
        """1 for the job that is next; None for one that does not wait."""
        if job.state is not State.WAITING:
            return None
        with self._changed:
            waiting = self._waiting()
        return waiting.index(job.id) + 1 if job.id in waiting else None

    # ------------------------------------------------------------------ a new one
    def begin_upload(self) -> Upload:
        """Takes a place in the queue. Raises TooManyWaitingError if there is none."""
        with self._changed:
            if len(self._uploads) + len(self._waiting()) >= self._max_waiting:
                raise TooManyWaitingError
            now = time.time()
            job_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(6)}"
            self._uploads.add(job_id)
        upload = Upload(job_id, self.folder(job_id), now)
        try:
            upload.photos.mkdir(parents=True)
        except BaseException:
            self.abandon(upload)
            raise
        return upload

    def abandon(self, upload: Upload) -> None:
        """Gives the place back and forgets the photos."""
        shutil.rmtree(upload.folder, ignore_errors=True)
        with self._changed:
            self._uploads.discard(upload.id)

    def submit(self, upload: Upload, photos: tuple[str, ...], options: Mapping[str, Any]) -> Job:
        """The upload is complete and waits for its turn. Raises OSError if that cannot be written down."""
        seconds = {UPLOAD: time.time() - upload.created}
        job = Job(upload.id, photos, dict(options), upload.created, seconds=seconds)
        self._write(job)
        with self._changed:
            self._uploads.discard(upload.id)
            self._jobs[job.id] = job
            self._changed.notify_all()
        return job

    # ------------------------------------------------------------------ the worker's side
    def next(self, begin: Callable[[Job], None]) -> Job | None:
        """Waits for a job, and marks it as running; None when the server ends.

        begin  called with the job before anybody can see that it runs
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting())
            if self._closed:
                return None
            job = self._jobs[self._waiting()[0]]
            begin(job)
            return self._set(job, state=State.RUNNING, started=time.time(), starts=job.starts + 1)

    def finish(self, job_id: str, state: State, **changes: Any) -> None:
        """Notes how a running job ended. One that was removed meanwhile stays so."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is not None:
                self._set(job, state=state, finished=time.time(), **changes)

    def put_back(self, job_id: str) -> None:
        """A running job waits again: the server ends in good order, which is not the job's fault."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is not None:
                self._set(job, state=State.WAITING, started=None, starts=job.starts - 1)

    def close(self) -> None:
        """`next` returns None from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def release(self) -> None:
        """Another server may have the folder from now on."""
        self._lock_file.close()

    # ------------------------------------------------------------------ the client's side
    def cancel_waiting(self, job_id: str) -> bool:
        """Returns whether the job was waiting, and now is cancelled."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None or job.state is not State.WAITING:
                return False
            self._set(job, state=State.CANCELLED, finished=time.time())
            return True

    def forget(self, job_id: str) -> None:
        """The job is no longer known, nor after a restart. Its folder stays until `delete_folder`."""
        with self._changed:
            self._jobs.pop(job_id, None)
            (self.folder(job_id) / STATE).unlink(missing_ok=True)

    def delete_folder(self, job_id: str) -> None:
        """Of a job that is forgotten."""
        shutil.rmtree(self.folder(job_id), ignore_errors=True)

    # ------------------------------------------------------------------ inside
    def _waiting(self) -> list[str]:
        waiting = (job for job in self._jobs.values() if job.state is State.WAITING)
        return [job.id for job in sorted(waiting, key=lambda job: (job.submitted, job.id))]

    def _set(self, job: Job, **changes: Any) -> Job:
        changed = dataclasses.replace(job, **changes)
        try:
            self._write(changed)
        except OSError as error:  # a full disk: the state is known as long as the server runs
            logger.error("%s cannot be written: %s", self.folder(job.id) / STATE, error)
        self._jobs[job.id] = changed
        self._changed.notify_all()
        return changed

    def _write(self, job: Job) -> None:
        """All at once; on the disk when this returns, but for the word that it runs, without which it waits again."""
        path = self.folder(job.id) / STATE
        new = sibling(path, "new")
        try:
            write_json(new, dataclasses.asdict(job))
            if job.state is not State.RUNNING:
                with new.open("rb") as file:
                    os.fsync(file.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)

    def _take_up(self) -> None:
        """Reads the states that an earlier server left; what it had not finished is waiting again."""
        for folder in sorted(self._folder.iterdir()):
            if not folder.is_dir() or not _ID.fullmatch(folder.name):
                continue
            if not (folder / STATE).exists():  # an upload that never was complete, or half deleted
                shutil.rmtree(folder, ignore_errors=True)
                continue
            try:
                job = _read(folder)
            except (OSError, ValueError, TypeError, KeyError) as error:
                logger.warning("%s cannot be read and is left alone: %s", folder / STATE, error)
                continue
            self._jobs[job.id] = job
            for left in folder.glob(f".{RESULT}.*"):
                shutil.rmtree(left, ignore_errors=True)
            if job.state is State.RUNNING:
                self._take_up_running(job)

    def _take_up_running(self, job: Job) -> None:
        if is_result(self.folder(job.id) / RESULT):
            outcome = outcome_of(self.folder(job.id) / RESULT)
            self._set(job, state=State.DONE, finished=time.time(), outcome=outcome)
        elif job.starts < MAX_STARTS:
            self._set(job, state=State.WAITING, started=None)
        else:
            error = "the server ended while it worked on this, twice; it may need more memory than there is"
            self._set(job, state=State.FAILED, finished=time.time(), error=error)


def _read(folder: Path) -> Job:
    """Raises OSError, ValueError, TypeError or KeyError if this is no state of a job."""
    said = json.loads((folder / STATE).read_text(encoding="utf-8"))
    names = {one.name for one in dataclasses.fields(Job)}
    said = {name: value for name, value in said.items() if name in names}
    if said["id"] != folder.name:
        raise ValueError(f"it is of the job {said['id']}")
    lists = {name: tuple(said.get(name, ())) for name in ("photos", "warnings")}
    return Job(**{**said, **lists, "state": State(said["state"])})


def outcome_of(result: Path) -> dict[str, Any]:
    """What a client is told of a result: its verdict with reasons, and how many photos are registered."""
    run = read_run(result)
    verdict = run.get("verdict") or {}
    return {
        "verdict": verdict.get("level"),
        "reasons": verdict.get("reasons", []),
        "num_photos": len(run["images"]),
        "num_registered": len(run["groups"][0]) if run["groups"] else 0,
    }


def _locked(folder: Path) -> IO[str]:
    """An open file that marks the folder as in use; the system gives it free however the process ends."""
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InputError(f"`output={folder}` is in use by another server: name another folder") from error
    return file
