"""What `doctor` finds on machines that are not this one."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from mast3r_sfm.app import doctor
from mast3r_sfm.app.doctor import Check


class FakeGpu(SimpleNamespace):
    """What `check_gpu` asks of torch, for a machine described by a few words."""

    def __init__(self, cuda: str | None, gpus: int = 0, error: str = "", apple: bool = False) -> None:
        def ones(*_: object, **__: object) -> SimpleNamespace:
            if error:
                raise RuntimeError(error)
            return SimpleNamespace(sum=lambda: SimpleNamespace(item=lambda: 8.0))

        super().__init__(
            __version__="2.9.0",
            version=SimpleNamespace(cuda=cuda),
            backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: apple)),
            ones=ones,
            cuda=SimpleNamespace(
                is_available=lambda: gpus > 0,
                device_count=lambda: gpus,
                get_device_name=lambda index: f"GPU {index}",
                mem_get_info=lambda index: (3 * 2**30, 4 * 2**30),
            ),
        )


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Whether the machine has an NVIDIA driver; no by default."""
    there = {"there": False}
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if there["there"] else None)
    monkeypatch.setattr(doctor, "_DRIVER", Path("/nowhere"))
    monkeypatch.setattr(doctor, "_CONTAINER_MARK", Path("/nowhere"))
    return there


def test_gpus_are_named_with_their_memory(driver: dict[str, bool]) -> None:
    check = doctor.check_gpu(FakeGpu("12.8", gpus=2))
    assert check.status == "ok"
    assert "GPU 0, 3.0 of 4.0 GiB free; GPU 1" in check.detail
    assert "CUDA 12.8" in check.detail


def test_a_gpu_without_kernels_in_this_torch_is_found_out(driver: dict[str, bool]) -> None:
    check = doctor.check_gpu(FakeGpu("12.8", gpus=1, error="no kernel image is available\nlong story"))
    assert check.status == "note"
    assert check.detail == "GPU 0 does not compute: no kernel image is available"
    assert "--device cpu" in check.remedy


def test_a_cpu_build_beside_a_driver_has_a_remedy_and_without_one_needs_none(driver: dict[str, bool]) -> None:
    assert doctor.check_gpu(FakeGpu(None)).remedy == ""
    driver["there"] = True
    check = doctor.check_gpu(FakeGpu(None))
    assert check.status == "note"
    assert "CUDA build" in check.remedy


def test_a_container_without_gpus_says_how_to_start_it(
    driver: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_CONTAINER_MARK", Path("/"))
    assert "--gpus all" in doctor.check_gpu(FakeGpu("12.8")).remedy


def test_packages_missing_or_of_another_version_are_named() -> None:
    assert doctor.check_packages(["pytest>=1"]).status == "ok"
    check = doctor.check_packages(["pytest>=1", "pytest<1", "no-such-package", 'never; extra == "dev"'])
    assert check.status == "failed"
    assert "no-such-package is missing" in check.detail
    assert "needed is <1" in check.detail
    assert "never" not in check.detail
    assert check.remedy


EXTRAS_OF_A_WHEEL = [
    "pytest>=1",
    'pytest>=1; extra == "video"',
    'no-such-package>=2; extra == "raw"',
    'pytest>=1; extra == "las"',
    'pytest<1; extra == "las"',
]


def test_extras_that_are_missing_are_named_with_their_use_and_their_cure() -> None:
    check = doctor.check_extras(EXTRAS_OF_A_WHEEL)
    version = importlib.metadata.version("pytest")
    assert check.status == "note"
    there, lacking = check.detail.split("; not installed: ")
    assert there == f"video (pytest {version})"
    assert "raw for RAW photos (no-such-package is missing)" in lacking
    assert f"las for --export las (pytest is {version}, needed is <1)" in lacking
    others = [extra for extra in doctor._EXTRAS if extra != "video"]
    assert check.remedy == f"pip install 'mast3r-sfm[{','.join(others)}]'"


def test_extras_that_are_all_there_need_no_remedy() -> None:
    check = doctor.check_extras([f'pytest>=1; extra == "{extra}"' for extra in doctor._EXTRAS])
    assert (check.status, check.remedy) == ("ok", "")
    assert all(f"{extra} (pytest " in check.detail for extra in doctor._EXTRAS)


def test_every_extra_of_the_package_is_told_of() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert set(doctor._EXTRAS) == set(project["optional-dependencies"]) - {"dev"}
    (check,) = [check for check in doctor.run_checks() if check.name == "extras"]
    assert all(f"{extra} " in check.detail for extra in doctor._EXTRAS)


def test_a_read_only_output_fails_and_a_new_folder_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_disk(tmp_path / "not" / "yet").status == "ok"
    monkeypatch.setattr(doctor, "_is_writable", lambda folder: False)
    check = doctor.check_disk(tmp_path)
    assert (check.status, bool(check.remedy)) == ("failed", True)


def test_a_full_disk_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10_000_000))
    assert doctor.check_disk(tmp_path).status == "note"


def test_the_model_is_cached_or_replaced_by_the_bundled_one_or_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub = SimpleNamespace(try_to_load_from_cache=lambda repo, name: None)
    monkeypatch.setattr(doctor, "_import", lambda name: hub)
    check = doctor.check_model()
    assert check.status == "note"
    assert "HF_HUB_OFFLINE" in check.remedy

    monkeypatch.setattr(doctor, "_BUNDLED", tmp_path / "nothing")
    assert doctor.check_model().status == "failed"

    hub.try_to_load_from_cache = lambda repo, name: "/cache/model.safetensors"
    assert doctor.check_model().status == "ok"


def test_notes_do_not_keep_the_main_job_from_running_and_failures_do() -> None:
    ok, note, failed = Check("a", "ok", ""), Check("b", "note", "slow", "buy"), Check("c", "failed", "no")
    assert doctor.can_reconstruct([ok, note])
    assert not doctor.can_reconstruct([ok, failed])
    assert doctor.report([ok, note, failed]).splitlines()[-2:] == [
        "failed  c  no",
        "A reconstruction cannot run: see 'failed' above.",
    ]
    assert "-> buy" in doctor.report([note])


def test_the_command_works_here_and_needs_no_torch_to_say_that_torch_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from mast3r_sfm.app.cli import main; main(['doctor'])"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("A reconstruction can run.\n")

    (tmp_path / "torch.py").write_text("raise ImportError('broken')")
    code = "import sys; from mast3r_sfm.app import doctor; print(doctor.report(doctor.run_checks()))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "torch cannot be imported" in done.stdout
    assert "cannot run" in done.stdout
