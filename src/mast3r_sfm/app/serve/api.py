"""The routes: the page, and the REST API that it uses as any other client does (docs/serve.md)."""

from __future__ import annotations

import mimetypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from mast3r_sfm._version import __version__
from mast3r_sfm.app.flags import as_options
from mast3r_sfm.app.requests import ModelRequest
from mast3r_sfm.app.serve.archive import files_below, zipped
from mast3r_sfm.app.serve.guard import PAGE_POLICY, Guard
from mast3r_sfm.app.serve.jobs import RESULT, UPLOAD, Job, Jobs, State, TooManyWaitingError
from mast3r_sfm.app.serve.options import JobOptions
from mast3r_sfm.app.serve.page import page, script, sign_in_page, style
from mast3r_sfm.app.serve.uploads import ACCEPTED, Checker, RefusedError, disk_full_refused, receive
from mast3r_sfm.app.serve.worker import Worker
from mast3r_sfm.errors import InputError
from mast3r_sfm.export.result import write_exports
from mast3r_sfm.model.checkpoint import Model
from mast3r_sfm.options import ExportFormat, PhotoOptions, ServeLimits

_RETRY_S = 30
_MAX_SIGN_IN = 1000
_REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)
"""Of the report, which has a stricter one in itself: this says who may show it in a frame."""


@dataclass(frozen=True)
class Service:
    """What the routes work with. `request` is what the model was loaded by."""

    jobs: Jobs
    worker: Worker
    checker: Checker
    model: Model
    request: ModelRequest
    limits: ServeLimits


def create_app(service: Service, port: int, token: str | None) -> Guard:
    """The application, with its worker running from start to shutdown. See `Guard` for `token`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await run_in_threadpool(service.worker.stop)
        service.checker.close()
        service.jobs.release()

    app = FastAPI(title="mast3r-sfm", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    guard = Guard(app, port, token, sign_in_page(), frozenset({"/session", "/style.css"}))
    _add_pages(app, guard)
    _add_jobs(app, service)
    _add_results(app, service)
    return guard


def _add_pages(app: FastAPI, guard: Guard) -> None:
    @app.get("/", include_in_schema=False)
    def index() -> Response:
        return HTMLResponse(page(), headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/style.css", include_in_schema=False)
    def stylesheet() -> Response:
        return Response(style(), media_type="text/css")

    @app.get("/main.js", include_in_schema=False)
    def main_script() -> Response:
        return Response(script(), media_type="text/javascript")

    @app.post("/session", include_in_schema=False)
    async def session(request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_SIGN_IN:
                raise HTTPException(413, "too long for a token")
        given = parse_qs(body.decode("latin-1")).get("token", [""])[0].strip()
        if guard.is_token(given):
            return guard.signed_in()
        again = sign_in_page().replace("<!--wrong-->", '<p class="wrong">This is not the token.</p>')
        return HTMLResponse(again, 401, {"Content-Security-Policy": PAGE_POLICY})


_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "options": {"$ref": "#/components/schemas/JobOptions"},
                    },
                }
            }
        },
    }
}


def _add_jobs(app: FastAPI, service: Service) -> None:
    jobs, worker = service.jobs, service.worker

    @app.get("/about")
    def about() -> dict[str, Any]:
        """The server: version, model, limits, accepted suffixes."""
        model = service.model.description()
        return {
            "version": __version__,
            "model": {
                "name": model.name,
                "device": model.device,
                "precision": model.precision,
                "licence": model.licence,
            },
            "limits": asdict(service.limits),
            "suffixes": ACCEPTED,
            "options": JobOptions.model_json_schema(),
        }

    @app.post("/reconstructions", status_code=202, openapi_extra=_FORM)
    async def create(request: Request) -> JSONResponse:
        """Photos or clips as `files`, and `options` as JSON; answers with the job, which waits for its turn."""
        try:
            with disk_full_refused():
                job = await _received(request, service)
        except TooManyWaitingError as error:
            message = f"{service.limits.max_waiting} reconstructions are waiting already: try again later"
            raise HTTPException(429, message, {"Retry-After": str(_RETRY_S)}) from error
        except RefusedError as error:
            headers = {"Connection": "close"} if error.status in (408, 413) else None  # the rest is not read
            raise HTTPException(error.status, error.message, headers) from error
        except ClientDisconnect:
            return JSONResponse({"detail": "the client left"}, 400)  # whom nobody reads any more
        return JSONResponse(_described(job, service), 202, {"Location": f"/reconstructions/{job.id}"})

    @app.get("/reconstructions")
    def latest(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
        """The latest reconstructions, the newest first."""
        return {"reconstructions": [_described(job, service) for job in jobs.all()[:limit]]}

    @app.get("/reconstructions/{job_id}")
    def one(job_id: str) -> dict[str, Any]:
        """State, place in the queue, progress, times, outcome."""
        return _described(_known(jobs, job_id), service)

    @app.post("/reconstructions/{job_id}/cancel")
    def cancel(job_id: str) -> dict[str, Any]:
        """Ends a job that waits at once, a running one at its next step; a finished one stays as it is."""
        _known(jobs, job_id)
        worker.cancel(job_id)
        return _described(_known(jobs, job_id), service)

    @app.delete("/reconstructions/{job_id}", status_code=204)
    def delete(job_id: str) -> None:
        """Ends the job if need be, and deletes its photos and its result."""
        _known(jobs, job_id)
        worker.remove(job_id)


async def _received(request: Request, service: Service) -> Job:
    """The job of a request, which waits now. Nothing is left of one that is refused or breaks off."""
    jobs = service.jobs
    upload = await run_in_threadpool(jobs.begin_upload)
    try:
        names, given = await receive(request.headers, request.stream(), upload.photos, service.limits, service.checker)
        options = _checked_options(given, upload.photos, service)
        return await run_in_threadpool(jobs.submit, upload, names, options)
    except BaseException:
        jobs.abandon(upload)
        raise


def _add_results(app: FastAPI, service: Service) -> None:
    jobs = service.jobs

    @app.get("/reconstructions/{job_id}/files")
    def names(job_id: str) -> dict[str, Any]:
        """Names and sizes of the result's files."""
        found = files_below(_result(jobs, job_id))
        return {"files": [{"name": name, "bytes": path.stat().st_size} for name, path in found.items()]}

    @app.get("/reconstructions/{job_id}/files/{name:path}")
    def one(job_id: str, name: str) -> FileResponse:
        """One file of the result, by its name in the list."""
        found = files_below(_result(jobs, job_id)).get(name)  # a name is looked up, never joined to a path
        if found is None:
            raise HTTPException(404, "the result has no such file")
        kind = mimetypes.guess_type(found.name)[0] or "application/octet-stream"
        return FileResponse(found, media_type=kind, filename=found.name)

    @app.get("/reconstructions/{job_id}/result.zip")
    def archive(job_id: str) -> StreamingResponse:
        """The whole result."""
        name = f"reconstruction-{job_id}"
        headers = {"Content-Disposition": f'attachment; filename="{name}.zip"'}
        return StreamingResponse(zipped(_result(jobs, job_id), name), media_type="application/zip", headers=headers)

    @app.get("/reconstructions/{job_id}/view")
    def view(job_id: str) -> FileResponse:
        """The report: the result to look at."""
        folder = _result(jobs, job_id)
        report = folder / ExportFormat.REPORT.entry
        if not report.exists():
            try:
                write_exports(folder, [ExportFormat.REPORT], PhotoOptions())
            except InputError as error:
                raise HTTPException(500, _without_paths(str(error), folder)) from error
        headers = {"Content-Security-Policy": _REPORT_POLICY, "X-Frame-Options": "SAMEORIGIN"}
        return FileResponse(report, media_type="text/html; charset=utf-8", headers=headers)


def _known(jobs: Jobs, job_id: str) -> Job:
    job = jobs.get(job_id)
    if job is None:
        raise HTTPException(404, "there is no such reconstruction")
    return job


def _result(jobs: Jobs, job_id: str) -> Path:
    job = _known(jobs, job_id)
    if job.state is not State.DONE:
        raise HTTPException(409, f"this reconstruction has no result: it is {job.state}")
    return jobs.folder(job_id) / RESULT


def _checked_options(given: dict[str, Any], photos: Path, service: Service) -> dict[str, Any]:
    """The options as they are kept. Raises RefusedError."""
    try:
        options = JobOptions.model_validate(given)
        options.request(photos, service.request, service.limits)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False))
        raise RefusedError(422, "; ".join(faults)) from error
    except InputError as error:
        raise RefusedError(422, as_options(str(error))) from error
    return options.model_dump(mode="json", exclude_unset=True)


def _without_paths(message: str, folder: Path) -> str:
    return message.replace(f"{folder.parent}/", "")


def _described(job: Job, service: Service) -> dict[str, Any]:
    """A job as clients see it."""
    return {
        "id": job.id,
        "state": job.state,
        "place_in_queue": service.jobs.place_in_queue(job),
        "photos": job.photos,
        "options": job.options,
        "created": _time(job.created),
        "started": _time(job.started),
        "finished": _time(job.finished),
        "progress": service.worker.progress(job.id) if job.state is State.RUNNING else None,
        "seconds": _seconds(job),
        "outcome": job.outcome,
        "error": job.error,
        "warnings": job.warnings,
    }


def _seconds(job: Job) -> dict[str, Any]:
    """Where the time went: the upload, the wait for the turn, the work as a whole and by its stages."""
    stages = dict(job.seconds)
    return {
        "upload": stages.pop(UPLOAD, None),
        "wait": None if job.started is None else max(0.0, job.started - job.submitted),
        "work": None if job.started is None or job.finished is None else job.finished - job.started,
        "stages": stages,
    }


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
