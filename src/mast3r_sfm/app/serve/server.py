"""From a request on the command line to a server that runs until Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from urllib.parse import quote

import uvicorn

from mast3r_sfm.app.console import say, server_log
from mast3r_sfm.app.requests import MIN_TOKEN, ServeRequest
from mast3r_sfm.app.serve.api import Service, create_app
from mast3r_sfm.app.serve.guard import is_loopback
from mast3r_sfm.app.serve.jobs import Jobs
from mast3r_sfm.app.serve.uploads import Checker
from mast3r_sfm.app.serve.worker import Worker
from mast3r_sfm.errors import InputError
from mast3r_sfm.images.decoding import quiet_pillow
from mast3r_sfm.model.checkpoint import Model

_BACKLOG = 128
_MAX_CONNECTIONS = 512
_GOODBYE_S = 3


def run_server(request: ServeRequest, load_model: Callable[[], Model]) -> None:
    """Listens, loads the model, and serves until Ctrl-C or SIGTERM.

    Raises InputError for an address or folder that cannot be had and for a token that can be guessed, and the errors of
    the model.
    """
    token = token_of(request)
    with socket_of(request.host, request.port) as listening, quiet_pillow(), server_log(request.display.debug):
        jobs = Jobs(request.output, request.limits.max_waiting)
        model = load_model()
        service = Service(
            jobs,
            Worker(jobs, model, request.model, request.limits),
            Checker(),
            model,
            request.model,
            request.limits,
        )
        app = create_app(service, request.port, token)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                limit_concurrency=_MAX_CONNECTIONS,
                timeout_graceful_shutdown=_GOODBYE_S,
            )
        )
        listening.listen(_BACKLOG)
        url = _url(request, token)
        say(f"{url} takes photos; results go to {request.output}; Ctrl-C ends it")
        if request.browser:
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])


def socket_of(host: str, port: int) -> socket.socket:
    """Bound, and not yet listening. Raises InputError if the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"`host={host}` is no address of this machine: name one, as 127.0.0.1 or 0.0.0.0") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(f"`host={host}` is no address of this machine: name one, as 127.0.0.1") from error
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        reason = "is in use" if error.errno == errno.EADDRINUSE else "is not allowed to you"
        raise InputError(f"`port={port}` {reason}: name another one") from error
    return made


def token_of(request: ServeRequest) -> str | None:
    """The token that clients have to know: always one where other machines can ask."""
    if request.token is None:
        return None if is_loopback(request.host) else secrets.token_urlsafe(24)
    if len(request.token) < MIN_TOKEN or not request.token.isascii() or not request.token.isprintable():
        raise InputError(f"`token` must have {MIN_TOKEN} characters of ASCII or more")
    return request.token


def _url(request: ServeRequest, token: str | None) -> str:
    """For the browser of this machine."""
    host = "127.0.0.1" if request.host in ("0.0.0.0", "::", "") else request.host
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{request.port}/" + ("" if token is None else f"?token={quote(token, safe='')}")
