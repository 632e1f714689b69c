#!/usr/bin/env bash
# Photos in, cameras, depth and a 3D scene out: runs `mast3r-sfm reconstruct` in Docker where Docker can use a GPU,
# and otherwise in .venv (made on the first run).
#
#   ./predict.sh                                   the demo photos, into outputs/
#   ./predict.sh --input PHOTOS --output RESULT    a folder, file or glob; --input may be repeated
#   ./predict.sh --input PHOTOS --scene-graph swin --niter 500
#   ./predict.sh --batch SCENES --output RESULTS   every subfolder of SCENES is a scene
#   ./predict.sh --serve                           a page to drop photos on, at http://127.0.0.1:8000 (docs/serve.md)
#
#   --serve              runs `mast3r-sfm serve` instead; in Docker --host and --port are where the port is published
#   --docker, --local    run there and nowhere else
#   -h, --help           this, and the options of `mast3r-sfm reconstruct` (with --serve: of `mast3r-sfm serve`)
# Every other argument goes to `mast3r-sfm reconstruct` (or `serve`) as it is.
#
# Environment: MAST3R_SFM_IMAGE (the image to run or build, mast3r-sfm:latest), HF_HOME (where models are kept,
# ~/.cache/huggingface), XDG_CACHE_HOME (compiled kernels, ~/.cache), HF_TOKEN, HF_HUB_OFFLINE, the usual proxy
# variables, CUDA_VISIBLE_DEVICES, MAST3R_SFM_TOKEN (of --serve), PYTHON.
set -euo pipefail
# shellcheck disable=SC1007  # an empty CDPATH for this one command: cd would print where it went
root=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
image=${MAST3R_SFM_IMAGE:-mast3r-sfm:latest}
# shellcheck source=scripts/setup_venv.sh
. "$root/scripts/setup_venv.sh"
# shellcheck source=scripts/docker_run.sh
. "$root/scripts/docker_run.sh"

place=auto
command=reconstruct
has_input=false
wants_help=false
args=()
for arg in "$@"; do
    case $arg in
    --docker | --local) place=${arg#--} && continue ;;
    --serve) command=serve && continue ;;
    --input | --input=* | --batch | --batch=*) has_input=true ;;
    -h | --help) wants_help=true ;;
    esac
    args+=("$arg")
done
if $wants_help; then
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"
    echo && cat "$root/docs/${command}_help.txt"
    exit
fi

if [ "$place" != local ]; then
    problem=$(docker_problem)
    if [ "$place" = auto ] && [ -z "$problem" ] && ! docker_has_gpu; then
        problem="Docker has no GPU runtime here; install the NVIDIA Container Toolkit, or force the container: --docker"
    fi
    if [ -z "$problem" ]; then
        place=docker
    elif [ "$place" = docker ]; then
        echo "error: $problem; or leave out --docker to run in .venv" >&2
        exit 2
    else
        place=local
        if command -v docker >/dev/null 2>&1; then echo "note: running in .venv: $problem" >&2; fi
    fi
fi

if [ "$place" = docker ]; then
    if ! docker image inspect "$image" >/dev/null 2>&1; then
        echo "There is no image $image yet; building it (once) ..." >&2
        "$root/build.sh" --tag "$image"
    fi
    if [ "$command" = reconstruct ] && ! $has_input; then
        demo=$(docker_demo_folder "$image")
        args=(--input "$demo" ${args[@]+"${args[@]}"})
    fi
    docker_note_stale_image "$root" "$image"
    "docker_$command" "$image" ${args[@]+"${args[@]}"}
else
    if [ "$command" = reconstruct ] && ! $has_input; then
        args=(--input "$root/demo_data" ${args[@]+"${args[@]}"})
    fi
    setup_venv "$root" run
    exec "$root/.venv/bin/mast3r-sfm" "$command" ${args[@]+"${args[@]}"}
fi
