"""Files of a model on the Hugging Face Hub: the local cache first, then a download."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from mast3r_sfm.errors import ModelError
from mast3r_sfm.model.config import PRESETS
from mast3r_sfm.options import DEFAULT_MODEL, SMALL_MODEL

_CONNECT_TIMEOUT_S = 5.0
_PROXIES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")


class HubUnreachableError(ModelError):
    """The model is not in the cache, and the hub cannot be asked (offline, or the network is down)."""


class NotOnHubError(ModelError):
    """The hub answered that it has no such repository, revision or file, or does not show it to this user."""


def published_names() -> str:
    """The names a user may have meant, for error messages."""
    return ", ".join([*PRESETS, SMALL_MODEL])


def fetch(repo: str, filename: str, revision: str | None = None) -> Path:
    """Path of a file of the hub's repository `repo`, from the cache, otherwise downloaded.

    What is cached is used without asking the hub whether it is current; a `revision` pins it. Token,
    cache folder, endpoint and offline mode are huggingface_hub's own (HF_TOKEN, HF_HOME, HF_ENDPOINT,
    HF_HUB_OFFLINE).

    Raises HubUnreachableError, NotOnHubError.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"model {repo!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        return Path(huggingface_hub.hf_hub_download(repo, filename, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise ModelError(
            f"{repo!r} is neither an existing file or folder nor a valid model name; published: {published_names()}"
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise HubUnreachableError(
            f"{name}: {filename} is not in the cache {constants.HF_HUB_CACHE} and HF_HUB_OFFLINE is set; "
            "unset it, or give a local folder or 'small' as `model_name`"
        )
    if not _reachable(constants.ENDPOINT):
        raise HubUnreachableError(
            f"{name}: {filename} is not in the cache {constants.HF_HUB_CACHE} and {constants.ENDPOINT} cannot be "
            "reached; check the network, or give a local folder or 'small' as `model_name`"
        )
    try:
        return Path(huggingface_hub.hf_hub_download(repo, filename, revision=revision))
    except GatedRepoError as error:
        raise NotOnHubError(f"{name}: access must be granted on the hub first; then set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise NotOnHubError(f"{name}: the hub has the model but not this revision") from error
    except RepositoryNotFoundError as error:
        hint = ""
        if "224" in repo and "mast3r" in repo.lower():
            hint = f"; use `model_name={DEFAULT_MODEL}` and `image_size=224`"
        raise NotOnHubError(
            f"{name}: {constants.ENDPOINT} has no such model (or it is private: set HF_TOKEN){hint}; "
            f"published: {published_names()}"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise HubUnreachableError(f"{name}: downloading {filename} failed ({_first_line(error)}); try again") from error
    except EntryNotFoundError as error:
        raise NotOnHubError(f"{name}: the hub's repository has no file {filename}") from error
    except (HfHubHTTPError, OSError) as error:
        raise HubUnreachableError(f"{name}: downloading {filename} failed ({_first_line(error)}); try again") from error


def revision_of(path: Path) -> str | None:
    """Commit of a cached file (.../snapshots/COMMIT/file), None if it is not laid out like that."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _reachable(endpoint: str) -> bool:
    """Whether the hub's host takes a connection; spares the user the client's long series of retries."""
    if any(os.environ.get(name) for name in _PROXIES):
        return True  # only the proxy can tell
    url = urlsplit(endpoint)
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        with socket.create_connection((url.hostname or "", port), timeout=_CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False
