"""What this machine has for a reconstruction, what it lacks, and the cure for each."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mast3r_sfm.app.compare.published import find_upstream, import_upstream
from mast3r_sfm.app.requests import SERVER_PACKAGES
from mast3r_sfm.errors import InputError
from mast3r_sfm.options import DEFAULT_MODEL, SMALL_MODEL

Status = Literal["ok", "note", "failed"]

# float32 weights of the published model (688,638,856 parameters) are 2.75 GB; loading may take 1.3 times as much
_WEIGHTS_GB = 2.75
_LOADING_GB = 1.3 * _WEIGHTS_GB
_RESULT_GB = 1.0  # 200 views of 512x384, whose float32 maps take 4 MB each, and a scene within the default budget
_DRIVER = Path("/dev/nvidiactl")
_CONTAINER_MARK = Path("/.dockerenv")
_BUNDLED = Path(__file__).parents[1] / "data" / SMALL_MODEL
_EXTRAS: Mapping[str, str] = {
    "video": "films",
    "raw": "RAW photos",
    "exr": "--export exr",
    "las": "--export las",
    "e57": "--export e57",
    "usd": "--export usdz",
    "geo": "--georeference",
    "meshopt": "--compress meshopt",
    "draco": "--compress draco",
    "serve": "the command serve",
}
"""What needs each optional extra of `pyproject.toml`."""

_INSTALL = "in a checkout run ./test.sh or ./predict.sh --local, which install it; elsewhere pip install -r {lock}"


@dataclass(frozen=True)
class Check:
    """One finding.

    status  ok; note: the main job runs without it, but something is slower or missing; failed: it cannot run
    remedy  what to do, empty when there is nothing to do
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


def run_checks(output: Path | None = None) -> list[Check]:
    """All findings, in the order in which a missing part stops the next. Imports torch, if it can.

    output  folder that results will be written to (default: the current one)
    """
    requirements = _requirements()
    checks = [check_python(), check_packages(requirements)]
    torch = _import("torch")
    if torch is None:
        checks += [
            Check("torch", "failed", "torch cannot be imported", _INSTALL.format(lock="requirements-torch.lock"))
        ]
    else:
        checks += [check_gpu(torch)]
    checks += [check_memory(), check_model(), check_disk(output or Path.cwd())]
    return [*checks, check_extras(requirements), *check_optional_parts()]


def can_reconstruct(checks: Iterable[Check]) -> bool:
    """Whether the main job can run, if perhaps slowly."""
    return all(check.status != "failed" for check in checks)


def report(checks: Iterable[Check]) -> str:
    """The findings as text: one line each, the remedy below, the verdict last."""
    checks = list(checks)
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<6}  {check.name:<{width}}  {check.detail}")
        if check.remedy:
            lines.append(f"{'':<6}  {'':<{width}}  -> {check.remedy}")
    can = "A reconstruction can run." if can_reconstruct(checks) else "A reconstruction cannot run: see 'failed' above."
    return "\n".join([*lines, can])


def check_python() -> Check:
    """The interpreter; one that is too old could not have read this file."""
    detail = f"{platform.python_version()}, {sys.executable}, {platform.platform(terse=True)}"
    return Check("Python", "ok", detail)


def check_packages(requirements: Iterable[str]) -> Check:
    """Whether every requirement (`name>=version`) is installed in a version that satisfies it."""
    right, wrong = _installed(requirements)
    if wrong:
        lock = "requirements.lock -r requirements-torch.lock"
        return Check("packages", "failed", "; ".join(wrong), _INSTALL.format(lock=lock))
    return Check("packages", "ok", ", ".join(right))


def check_extras(requirements: Iterable[str]) -> Check:
    """Which optional extras are installed, and the command that installs the others.

    requirements  of the package with those of its extras, `name>=version; extra == "video"`
    """
    requirements = list(requirements)
    there, lacking = [], {}
    for extra, purpose in _EXTRAS.items():
        right, wrong = _installed(requirements, extra)
        if right and not wrong:
            there.append(f"{extra} ({', '.join(right)})")
        else:
            lacking[extra] = f"{extra} for {purpose}" + (f" ({', '.join(wrong)})" if wrong else "")
    if not lacking:
        return Check("extras", "ok", ", ".join(there))
    detail = f"{', '.join(there) or 'none'}; not installed: {', '.join(lacking.values())}"
    return Check("extras", "note", detail, f"pip install 'mast3r-sfm[{','.join(lacking)}]'")


def _installed(requirements: Iterable[str], extra: str = "") -> tuple[list[str], list[str]]:
    """Those requirements that an extra alone has (without one: those of the package) and that are met, with their
    versions; and what is wrong with the others.
    """
    from packaging.requirements import Requirement

    right, wrong = [], []
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if always == bool(extra) or not (marker is None or marker.evaluate({"extra": extra})):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            right.append(f"{requirement.name} {version}")
        else:
            wrong.append(f"{requirement.name} is {version}, needed is {requirement.specifier}")
    return right, wrong


def check_gpu(torch: Any) -> Check:
    """The GPUs as torch sees them. None is not a failure: the CPU does the same work more slowly."""
    build = f"torch {torch.__version__}"
    driver = shutil.which("nvidia-smi") is not None or _DRIVER.exists()
    if torch.cuda.is_available():
        return _check_cuda(torch, build)
    if torch.backends.mps.is_available():
        return Check("GPU", "ok", f"Apple GPU, {build}; it is used with --device mps")
    if torch.version.cuda is None:
        if driver:
            remedy = "install torch's CUDA build (delete .venv and let it be made again), or use ./predict.sh --docker"
            return Check("GPU", "note", f"there is an NVIDIA driver, but {build} was built without CUDA", remedy)
        return Check("GPU", "note", f"none ({build} without CUDA): the CPU is used, which is much slower")
    if _CONTAINER_MARK.exists():
        remedy = "run the container with --gpus all (./predict.sh does), with the NVIDIA Container Toolkit on the host"
        return Check("GPU", "note", f"none reaches this container ({build}): the CPU is used", remedy)
    remedy = f"install or update the NVIDIA driver ({build} was built for CUDA {torch.version.cuda})"
    return Check("GPU", "note", f"torch sees none ({build}): the CPU is used", remedy if driver else "")


def _check_cuda(torch: Any, build: str) -> Check:
    found = []
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        try:
            free, total = torch.cuda.mem_get_info(index)
            torch.ones(8, device=f"cuda:{index}").sum().item()  # an old GPU is seen, and then has no kernels
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            remedy = f"use --device cpu, or another torch than {build} (CUDA {torch.version.cuda})"
            return Check("GPU", "note", f"{name} does not compute: {reason}", remedy)
        found.append(f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    return Check("GPU", "ok", f"{'; '.join(found)}; {build}, CUDA {torch.version.cuda}")


def check_memory() -> Check:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = page * os.sysconf("SC_PHYS_PAGES") / 1e9
        free = page * os.sysconf("SC_AVPHYS_PAGES") / 1e9
        available = _proc_value("/proc/meminfo", "MemAvailable")
        free = free if available is None else available / 1e6
    except (ValueError, OSError, AttributeError):  # names that this system does not know
        return Check("memory", "note", "unknown on this system")
    detail = f"{free:.1f} of {total:.1f} GB free, {os.cpu_count()} CPUs"
    if free < _LOADING_GB:
        remedy = f"loading the published model needs about {_LOADING_GB:.1f} GB: free some, or use --model-name small"
        return Check("memory", "note", detail, remedy)
    return Check("memory", "ok", detail)


def check_model() -> Check:
    """Where a model would come from: the cache, a download, or the one bundled with the package."""
    hub = _import("huggingface_hub")
    if hub is None:
        return Check("model", "failed", "huggingface_hub is missing", _INSTALL.format(lock="requirements.lock"))
    from huggingface_hub import constants

    cache = f"cache {constants.HF_HUB_CACHE}"
    if isinstance(hub.try_to_load_from_cache(DEFAULT_MODEL, "model.safetensors"), str):
        return Check("model", "ok", f"{DEFAULT_MODEL} is in the {cache}")
    if constants.HF_HUB_OFFLINE:
        how = "HF_HUB_OFFLINE is set, so it is not downloaded"
        remedy = f"unset HF_HUB_OFFLINE, or copy a cache that has the model to {constants.HF_HUB_CACHE}"
    elif not _is_writable(Path(constants.HF_HUB_CACHE)):
        how = "and the cache cannot be written to"
        remedy = "point HF_HOME to a folder that can be written to"
    else:
        how = f"it is downloaded when it is first needed ({_WEIGHTS_GB} GB)"
        remedy = ""
    detail = f"{DEFAULT_MODEL} is not in the {cache}; {how}"
    if not (_BUNDLED / "config.json").exists() or not any(_BUNDLED.glob("*.safetensors")):
        return Check("model", "failed", f"{detail}; and the bundled model is incomplete", "reinstall mast3r-sfm")
    return Check("model", "note", f"{detail}. The bundled model ({SMALL_MODEL}) takes its place if need be", remedy)


def check_disk(output: Path) -> Check:
    """Whether results can be written, and how much room there is for them."""
    while not output.exists():
        output = output.parent
    if not _is_writable(output):
        remedy = "go to a folder that can be written to, or name one with --output"
        return Check("disk", "failed", f"{output} cannot be written to", remedy)
    free_gb = shutil.disk_usage(output).free / 1e9
    detail = f"{free_gb:.1f} GB free in {output}"
    if free_gb < _RESULT_GB:
        return Check("disk", "note", detail, "free some space, or name an --output on another disk")
    return Check("disk", "ok", detail)


def check_optional_parts() -> list[Check]:
    """What only some jobs need."""
    heif = importlib.util.find_spec("pillow_heif") is not None
    checks = [
        Check("HEIC photos", "ok", "readable")
        if heif
        else Check("HEIC photos", "note", "not readable", "pip install pillow-heif"),
    ]
    missing = [package for module, package in SERVER_PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        detail, remedy = f"{', '.join(missing)} not there: only `serve` needs them", "pip install 'mast3r-sfm[serve]'"
        checks.append(Check("server", "note", detail, remedy))
    else:
        checks.append(Check("server", "ok", "`serve` can run"))
    folder = find_upstream()
    if folder is None:
        detail = "not there: `compare` and `--engine upstream` need it, nothing else does"
        remedy = "use the container, or set MAST3R_UPSTREAM to a checkout of the published code with its submodules"
        return [*checks, Check("published code", "note", detail, remedy)]
    try:
        with import_upstream(folder):
            return [*checks, Check("published code", "ok", f"{folder} can be imported")]
    except InputError as error:
        return [*checks, Check("published code", "note", str(error))]


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires("mast3r-sfm") or []
    except importlib.metadata.PackageNotFoundError:
        return ["mast3r-sfm"]


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception:  # a broken installation can fail in any way; check_packages says which package it is
        return None


def _proc_value(path: str, key: str) -> float | None:
    """A value in kB from a file of the form `Key: value kB`, None where there is no such file or key."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)


def _is_writable(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
