"""predict.sh, build.sh and the set-up of .venv, with a recording `docker` and `python` on the PATH."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent

FAKE_DOCKER = r"""#!/bin/bash
# answers as Docker would, and appends what it was told to $FAKE/calls: arguments end in NUL, calls in a lone newline
{ printf '%s\0' "$@"; printf '\n\0'; } >>"$FAKE/calls"
case "$1 ${2:-}" in
"info --format")
    if [ -e "$FAKE/no-daemon" ]; then cat "$FAKE/no-daemon" >&2; exit 1; fi
    case $3 in
    *Runtimes*) if [ -e "$FAKE/gpu" ]; then echo '{"nvidia":{"path":"x"},"runc":{}}'; else echo '{"runc":{}}'; fi ;;
    *SecurityOptions*) if [ -e "$FAKE/rootless" ]; then echo '[name=rootless]'; else echo '[name=seccomp]'; fi ;;
    *DockerRootDir*) echo "$FAKE" ;;
    *) echo 28.0 ;;
    esac ;;
"image inspect")
    if [ ! -e "$FAKE/image" ]; then echo "No such image" >&2; exit 1; fi
    case "$*" in
    *mast3r-sfm.upstream*) cat "$FAKE/image" ;;
    *revision*) cat "$FAKE/revision" 2>/dev/null || echo ;;
    esac ;;
"build "*) echo published >"$FAKE/image" ;;
"run "*) exit "$(cat "$FAKE/exit-code" 2>/dev/null || echo 0)" ;;
esac
"""


@dataclass(frozen=True)
class Mount:
    source: str
    target: str
    readonly: bool


@dataclass
class Docker:
    """A recording docker; `home` is the caller's home and working folder."""

    folder: Path
    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def set(self, **facts: str | bool) -> None:
        for name, value in facts.items():
            path = self.folder / name.replace("_", "-")
            if value is False:
                path.unlink(missing_ok=True)
            else:
                path.write_text("" if value is True else value)

    def call(self, script: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        (self.folder / "calls").unlink(missing_ok=True)
        environment = {
            "PATH": f"{self.folder}:/usr/bin:/bin",
            "HOME": str(self.home),
            "FAKE": str(self.folder),
            **self.environment,
        }
        command = [str(ROOT / script), *arguments]
        return subprocess.run(
            command, cwd=cwd or self.home, env=environment, capture_output=True, text=True, check=False
        )

    def calls(self, command: str) -> list[list[str]]:
        """The arguments of every call of `docker COMMAND`."""
        path = self.folder / "calls"
        text = path.read_text() if path.exists() else ""
        calls = [call.split("\0")[:-1] for call in text.split("\n\0")[:-1]]
        return [call for call in calls if call[0] == command]

    def run(self, *arguments: str, cwd: Path | None = None) -> Run:
        done = self.call("predict.sh", "--docker", *arguments, cwd=cwd)
        assert done.returncode == 0, done.stderr
        (call,) = self.calls("run")
        return Run(call)


class Run:
    """One `docker run`: its options, its mounts, and what it passes to the command in the container."""

    def __init__(self, call: list[str]) -> None:
        split = call.index("mast3r-sfm:latest")
        self.options, self.command = call[:split], call[split + 1 :]

    def option(self, name: str) -> list[str]:
        return [self.options[k + 1] for k, value in enumerate(self.options) if value == name]

    @property
    def mounts(self) -> list[Mount]:
        mounts = []
        for text in self.option("--mount"):
            fields = dict(part.partition("=")[::2] for part in text.split(","))
            mounts.append(Mount(fields["source"], fields["target"], "readonly" in fields))
        assert len({mount.target for mount in mounts}) == len(mounts), "Docker refuses two mounts at one place"
        return mounts

    def mount(self, target: Path | str) -> Mount:
        (mount,) = [mount for mount in self.mounts if mount.target == str(target)]
        return mount


@pytest.fixture
def docker(tmp_path: Path) -> Docker:
    folder, home = tmp_path / "bin", tmp_path / "home of me"
    folder.mkdir()
    home.mkdir()
    (folder / "docker").write_text(FAKE_DOCKER)
    (folder / "docker").chmod(0o755)
    fake = Docker(folder, home.resolve())
    fake.set(gpu=True, image="published\n")
    return fake


def photos(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(b"")
    return folder


# --- what the container is given ------------------------------------------------------------------------------------


def test_without_arguments_the_container_reconstructs_its_own_demo(docker: Docker) -> None:
    run = docker.run()
    assert run.command == ["reconstruct", "--input", "/opt/mast3r-sfm/demo_data/NLE_tower"]
    assert run.option("--gpus") == ["all"]
    assert run.option("--user") == [f"{os.getuid()}:{os.getgid()}"]
    assert run.option("--workdir") == [str(docker.home)]
    outputs = run.mount(docker.home / "outputs")
    assert not outputs.readonly
    assert (docker.home / "outputs").is_dir(), "made here, so that it belongs to the caller"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--niter", "500"],
        ["--min-conf-thr", "2.0"],
        ["--scene-graph", "swin"],
        ["--image-size", "224", "--model-name", "naver/MASt3R_ViTLarge_BaseDecoder_224_catmlpdpt_metric"],
        ["--as-pointcloud"],
        ["--scene-graph", "a b", "--quiet", "*", "", "$HOME", "--odd='\""],
    ],
)
def test_other_arguments_pass_untouched(docker: Docker, arguments: list[str]) -> None:
    run = docker.run(*arguments)
    assert run.command == ["reconstruct", "--input", "/opt/mast3r-sfm/demo_data/NLE_tower", *arguments]


def test_input_is_read_only_and_output_is_written_beside_its_place(docker: Docker) -> None:
    photos(docker.home / "my photos")
    run = docker.run("--input", "my photos", "--output", "results/my scene")
    assert run.command == ["reconstruct", "--input", "my photos", "--output", "results/my scene"]
    folder = docker.home / "my photos"
    assert run.mount(folder) == Mount(str(folder), str(folder), readonly=True)
    assert not run.mount(docker.home / "results").readonly
    assert (docker.home / "results").is_dir()
    assert not (docker.home / "results/my scene").exists()


def test_several_inputs_in_both_spellings(docker: Docker, tmp_path: Path) -> None:
    first, second = photos(docker.home / "first"), photos(tmp_path / "elsewhere" / "second")
    run = docker.run("--input", "./first/", f"--input={second}", "--output=/tmp/result")
    assert run.command[1:] == ["--input", "./first/", f"--input={second}", "--output=/tmp/result"]
    assert run.mount(first).readonly
    assert run.mount(second).readonly
    assert not run.mount("/tmp").readonly


@pytest.mark.parametrize("value", ["album/1.jpg", "album/*.jpg", "album/sub*/x?.png", "pairs:album/pairs.txt"])
def test_files_globs_and_pair_lists_mount_their_folder(docker: Docker, value: str) -> None:
    album = photos(docker.home / "album")
    (album / "pairs.txt").write_text("")
    assert docker.run("--input", value).mount(album).readonly


def test_a_relative_path_upwards_through_a_linked_working_folder(docker: Docker, tmp_path: Path) -> None:
    inside = tmp_path / "real" / "inside"
    inside.mkdir(parents=True)
    album = photos(tmp_path / "real" / "album")
    (docker.home / "link").symlink_to(inside)
    run = docker.run("--input", "../album", cwd=docker.home / "link")
    assert run.option("--workdir") == [str(inside)]
    assert run.mount(album).readonly


def test_a_linked_folder_appears_under_its_own_name(docker: Docker, tmp_path: Path) -> None:
    album = photos(tmp_path / "disk" / "album")
    (docker.home / "link").symlink_to(album)
    assert docker.run("--input", "link").mount(docker.home / "link") == Mount(
        str(album), str(docker.home / "link"), readonly=True
    )


def test_photos_that_are_links_can_be_read(docker: Docker, tmp_path: Path) -> None:
    disk, album = photos(tmp_path / "disk"), photos(docker.home / "album")
    (album / "2.jpg").symlink_to(disk / "1.jpg")
    (album / "3.jpg").symlink_to("../../disk/1.jpg")
    (album / "dead.jpg").symlink_to("nowhere.jpg")
    assert docker.run("--input", "album").mount(disk) == Mount(str(disk), str(disk), readonly=True)


def test_a_batch_is_mounted_with_the_photos_that_its_scenes_link_to(docker: Docker, tmp_path: Path) -> None:
    disk, scene = photos(tmp_path / "disk"), photos(docker.home / "scenes" / "one")
    (scene / "2.jpg").symlink_to("../../../disk/1.jpg")
    run = docker.run("--batch", "scenes", "--output", "results/all")
    assert run.command == ["reconstruct", "--batch", "scenes", "--output", "results/all"]
    assert run.mount(docker.home / "scenes").readonly and not run.mount(docker.home / "results").readonly
    assert run.mount(disk) == Mount(str(disk), str(disk), readonly=True)


def test_a_server_is_published_on_this_machine_only(docker: Docker) -> None:
    run = docker.run("--serve")
    assert run.command == ["serve", "--host", "0.0.0.0", "--port", "8000"]
    assert run.option("--publish") == ["127.0.0.1:8000:8000"]
    assert not run.mount(docker.home / "outputs").readonly
    assert docker.run("--input", docker.home.name).option("--publish") == []


@pytest.mark.parametrize(
    ("arguments", "published", "port"),
    [
        (["--port", "9000"], "127.0.0.1:9000:9000", "9000"),
        (["--host=0.0.0.0", "--port=80"], "0.0.0.0:80:80", "80"),
        (["--host", "localhost"], "127.0.0.1:8000:8000", "8000"),
        (["--host", "::1"], "[::1]:8000:8000", "8000"),
    ],
)
def test_a_server_is_published_where_it_is_asked_to_listen(
    docker: Docker, arguments: list[str], published: str, port: str
) -> None:
    run = docker.run("--output", "jobs/mine", "--serve", *arguments, "--max-photos", "50")
    assert run.option("--publish") == [published]
    assert run.command == ["serve", "--host", "0.0.0.0", "--port", port, "--output", "jobs/mine", "--max-photos", "50"]
    assert not run.mount(docker.home / "jobs").readonly


def test_the_token_of_a_server_is_passed_by_name(docker: Docker) -> None:
    docker.environment["MAST3R_SFM_TOKEN"] = "a secret of the server"
    run = docker.run("--serve")
    assert run.option("--env") == ["MAST3R_SFM_TOKEN"] and "secret" not in " ".join(run.options)


def test_a_local_model_is_mounted_and_a_published_name_is_not(docker: Docker) -> None:
    model = photos(docker.home / "weights" / "mine")
    run = docker.run("--model-name", "weights/mine")
    assert run.mount(model).readonly
    assert len(docker.run("--model-name", "naver/some_model").mounts) == len(run.mounts) - 1


def test_output_inside_the_input_and_input_inside_the_outputs_folder(docker: Docker) -> None:
    album = photos(docker.home / "album")
    run = docker.run("--input", "album", "--output", "album/deep/result")
    assert run.mount(album).readonly
    assert not run.mount(album / "deep").readonly
    # the folder above the result is the input itself: it has to be writable, and is mounted once
    assert not docker.run("--input", "album", "--output", "album/result").mount(album).readonly
    assert not docker.run("--output", "album/result", "--input", "album").mount(album).readonly


def test_an_output_that_is_a_link_is_written_where_it_leads(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "disk" / "scene").mkdir(parents=True)
    (docker.home / "link").symlink_to(tmp_path / "disk" / "scene")
    run = docker.run("--output", "link")
    assert not run.mount(tmp_path / "disk").readonly
    assert not run.mount(docker.home).readonly, "the link itself must be seen inside"


def test_a_name_with_a_comma_and_quotes_is_one_field(docker: Docker) -> None:
    photos(docker.home / 'a, "b":c')
    run = docker.run("--input", 'a, "b":c')
    quoted = str(docker.home / 'a, "b":c').replace('"', '""')
    assert f'type=bind,"source={quoted}","target={quoted}",readonly' in run.option("--mount")


def test_a_system_folder_is_refused(docker: Docker) -> None:
    done = docker.call("predict.sh", "--docker", "--input", "/etc")
    assert done.returncode == 2
    assert "/etc cannot be mounted" in done.stderr
    assert not docker.calls("run")


def test_model_cache_follows_HF_HOME(docker: Docker) -> None:
    inside = "/opt/mast3r-sfm/cache/huggingface"
    assert docker.run().mount(inside) == Mount(str(docker.home / ".cache/huggingface"), inside, readonly=False)
    docker.environment["HF_HOME"] = str(docker.home / "models")
    assert docker.run().mount(inside).source == str(docker.home / "models")


def test_compiled_kernels_of_a_gpu_are_kept(docker: Docker) -> None:
    inside = "/opt/mast3r-sfm/cache/triton"
    assert docker.run().mount(inside) == Mount(str(docker.home / ".cache/mast3r-sfm/triton"), inside, readonly=False)
    assert f"TRITON_CACHE_DIR={inside}" in (ROOT / "Dockerfile").read_text()
    docker.environment["XDG_CACHE_HOME"] = str(docker.home / "caches")
    assert docker.run().mount(inside).source == str(docker.home / "caches/mast3r-sfm/triton")
    (docker.home / "file").write_text("")
    docker.environment["XDG_CACHE_HOME"] = str(docker.home / "file")  # no folder can be made in it: then without
    assert inside not in [mount.target for mount in docker.run().mounts]
    del docker.environment["XDG_CACHE_HOME"]
    docker.set(gpu=False)
    assert inside not in [mount.target for mount in docker.run().mounts]


def test_environment_is_passed_by_name(docker: Docker) -> None:
    assert docker.run().option("--env") == []
    docker.environment.update(HF_TOKEN="secret", HF_HUB_OFFLINE="1", https_proxy="http://proxy:1", HOSTNAME="x")
    run = docker.run()
    assert run.option("--env") == ["HF_TOKEN", "HF_HUB_OFFLINE", "https_proxy"]
    assert "secret" not in " ".join(run.options)


def test_rootless_docker_runs_as_its_root_which_is_the_caller(docker: Docker) -> None:
    docker.set(rootless=True)
    assert docker.run().option("--user") == ["0:0"]


def test_exit_code_of_the_container_is_that_of_the_script(docker: Docker) -> None:
    docker.set(exit_code="5")
    assert docker.call("predict.sh", "--docker").returncode == 5


# --- what is missing ------------------------------------------------------------------------------------------------


def test_without_gpu_runtime_forced_docker_runs_on_the_cpu(docker: Docker) -> None:
    docker.set(gpu=False)
    assert docker.run().option("--gpus") == []


def test_missing_image_is_built_first(docker: Docker) -> None:
    docker.set(image=False)
    run = docker.run("--niter", "5")
    (build,) = docker.calls("build")
    assert build[build.index("--tag") + 1] == "mast3r-sfm:latest"
    assert run.command[-2:] == ["--niter", "5"]


@pytest.mark.parametrize(
    ("message", "cure"),
    [
        ("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", "start it"),
        ("permission denied while trying to connect to the Docker daemon socket", "usermod"),
    ],
)
@pytest.mark.parametrize("script", ["predict.sh", "build.sh"])
def test_unusable_docker_is_named_with_its_cure(docker: Docker, script: str, message: str, cure: str) -> None:
    docker.set(no_daemon=message)
    done = docker.call(script, *(["--docker"] if script == "predict.sh" else []))
    assert done.returncode == 2
    assert cure in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_image_without_the_published_code_has_the_projects_own_demo(docker: Docker) -> None:
    docker.set(image="none\n")
    assert docker.run().command == ["reconstruct", "--input", "/opt/mast3r-sfm/demo_data"]


def test_docker_with_a_gpu_is_the_first_choice(docker: Docker) -> None:
    assert docker.call("predict.sh").returncode == 0
    assert docker.calls("run")


def test_an_image_of_another_revision_is_noted(docker: Docker) -> None:
    docker.set(revision="0123456789ab\n")
    done = docker.call("predict.sh")
    assert done.returncode == 0
    inside_git = subprocess.run(["git", "-C", str(ROOT), "rev-parse"], capture_output=True, check=False)
    assert ("./build.sh brings it up to date" in done.stderr) == (inside_git.returncode == 0)


def test_an_image_of_something_else_is_refused(docker: Docker) -> None:
    docker.set(image="\n")
    done = docker.call("predict.sh", "--docker")
    assert done.returncode == 2
    assert "not an image of this project" in done.stderr


def test_build_arguments(docker: Docker) -> None:
    done = docker.call("build.sh", "--no-upstream", "--tag", "x:y", "--build-arg", "BASE_IMAGE=a b", "--pull")
    assert done.returncode == 0, done.stderr
    (build,) = docker.calls("build")
    assert build[build.index("--tag") + 1] == "x:y"
    assert "UPSTREAM=none" in build
    assert build[build.index("BASE_IMAGE=a b") - 1] == "--build-arg"
    assert "--pull" in build
    assert build[-1] == str(ROOT)
    done = docker.call("build.sh", "--tag")
    assert done.returncode == 2


# --- .venv ----------------------------------------------------------------------------------------------------------

FAKE_PYTHON = r"""#!/bin/bash
# a python that makes environments out of itself and only writes down what pip would install
case "$1 ${2:-}" in
"-c import pip"*) [ -x "$(dirname "$0")/python" ] ;;
-c*) exec REAL "$@" ;;
-V*) echo "Python 3.99" ;;
"-m venv") mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && echo venv >>"$FAKE/installs" ;;
"-m pip")
    sleep "$(cat "$FAKE/seconds" 2>/dev/null || echo 0)"
    echo "$*" >>"$FAKE/installs"
    if [ -e "$FAKE/pip-fails" ]; then echo "no network"; exit 1; fi
    if [ "${!#}" = "$FAKE/project" ]; then
        printf '#!/bin/bash\n%s\n' 'printf "%s\0" "$@" >"$FAKE/command"' >"$(dirname "$0")/mast3r-sfm"
        chmod +x "$(dirname "$0")/mast3r-sfm"
    fi ;;
esac
"""


class Project:
    """A copy of the scripts and lock files, with a python that installs nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "project"
        self.root.mkdir()
        for name in ("predict.sh", "scripts", "docs", "pyproject.toml", *(path.name for path in ROOT.glob("*.lock"))):
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, self.root / name)
        self.python = folder / "python3"
        self.python.write_text(FAKE_PYTHON.replace("REAL", sys.executable))
        self.python.chmod(0o755)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {"PATH": f"{self.folder}:/usr/bin:/bin", "HOME": str(self.folder), "FAKE": str(self.folder)}
        command = [str(self.root / "predict.sh"), *arguments]
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def predict(self, *arguments: str) -> tuple[int, str]:
        process = self.start("--local", *arguments)
        _, stderr = process.communicate()
        return process.returncode, stderr

    def installs(self) -> list[str]:
        path = self.folder / "installs"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def command(self) -> list[str]:
        return (self.folder / "command").read_text().split("\0")[:-1]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path.resolve())


def test_local_run_installs_once_and_passes_arguments_untouched(project: Project) -> None:
    status, stderr = project.predict("--input", "a b", "--niter", "*")
    assert status == 0, stderr
    assert project.command() == ["reconstruct", "--input", "a b", "--niter", "*"]
    venv, packages, editable = project.installs()
    assert venv == "venv"
    assert "requirements.lock" in packages
    assert "requirements-torch.lock" in packages
    assert "requirements-dev.lock" not in packages
    assert "--no-deps" in editable

    status, stderr = project.predict()
    assert (status, stderr, project.installs()) == (0, "", [])
    assert project.command() == ["reconstruct", "--input", f"{project.root}/demo_data"]


def test_a_local_server_and_a_local_batch(project: Project) -> None:
    status, stderr = project.predict("--serve", "--port", "9000")
    assert status == 0, stderr
    assert project.command() == ["serve", "--port", "9000"]
    project.predict("--batch", "a b")
    assert project.command() == ["reconstruct", "--batch", "a b"]


def test_a_changed_lock_or_a_moved_project_is_installed_again(project: Project) -> None:
    project.predict()
    assert project.installs()
    with (project.root / "requirements.lock").open("a") as lock:
        lock.write("something==1.0\n")
    project.predict()
    assert len(project.installs()) == 2, "packages and project, in the environment that is there"


def test_a_failed_setup_is_taken_up_again(project: Project) -> None:
    (project.folder / "pip-fails").touch()
    status, stderr = project.predict()
    assert status == 1
    assert "no network" in stderr
    assert "again" in stderr
    project.installs()
    (project.folder / "pip-fails").unlink()
    status, stderr = project.predict()
    assert status == 0, stderr
    assert len(project.installs()) == 2
    assert project.predict() == (0, "")


def test_two_runs_at_once_install_once(project: Project) -> None:
    (project.folder / "seconds").write_text("0.3")
    processes = [project.start("--local"), project.start("--local")]
    assert [process.wait(timeout=30) for process in processes] == [0, 0]
    for process in processes:
        process.communicate()
    assert len(project.installs()) == 3


def test_no_suitable_python_is_said_in_one_line(project: Project) -> None:
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        (project.folder / name).write_text("#!/bin/bash\nexit 1\n")
        (project.folder / name).chmod(0o755)
    status, stderr = project.predict()
    assert status == 1
    assert "Python 3.11 or newer is needed" in stderr
    assert len(stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["--local", "-h"]])
def test_help_needs_neither_docker_nor_an_environment(project: Project, arguments: list[str]) -> None:
    process = project.start(*arguments)
    stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (0, "")
    assert "--input PHOTOS" in stdout and "--scene-graph GRAPH" in stdout
    assert project.installs() == []
    stdout, stderr = project.start(*arguments, "--serve").communicate()
    assert "--max-upload-mb" in stdout and "--scene-graph GRAPH" not in stdout and not stderr


@pytest.mark.parametrize(("fact", "reason"), [("runc only", "no GPU runtime"), ("no-daemon", "start it")])
def test_docker_that_is_no_use_is_passed_over_with_a_note(project: Project, fact: str, reason: str) -> None:
    (project.folder / "docker").write_text(FAKE_DOCKER)
    (project.folder / "docker").chmod(0o755)
    (project.folder / fact).write_text("Cannot connect")
    project.predict()
    process = project.start()
    _, stderr = process.communicate()
    assert process.returncode == 0
    assert stderr.startswith("note: running in .venv: ")
    assert reason in stderr
    assert len(stderr.splitlines()) == 1
    assert project.command()[0] == "reconstruct"


# --- locks ----------------------------------------------------------------------------------------------------------


def locked(*names: str) -> dict[str, str]:
    versions = {}
    for name in names:
        for line in (ROOT / name).read_text().splitlines():
            if line and not line.startswith("#"):
                pinned = re.fullmatch(r"([a-z0-9-]+)==(\S+)( ; .+)?", line)
                assert pinned, f"{name}: {line} is no pinned version"
                package, version, _marker = pinned.groups()
                assert package not in versions, f"{package} is pinned twice"
                versions[package] = version
    return versions


def test_the_locks_satisfy_the_project(project: Project) -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = locked("requirements.lock", "requirements-torch.lock", "requirements-dev.lock")
    for text in [*metadata["dependencies"], *metadata["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        name = requirement.name.replace("_", "-").lower()
        assert requirement.specifier.contains(pins[name]), f"{text} but {pins[name]} is locked"


def test_the_container_keeps_the_torch_of_its_base() -> None:
    assert "torch" not in locked("requirements.lock")
