#!/usr/bin/env bash
# Builds the container image.
#
#   ./build.sh                  mast3r-sfm:latest, with the published MASt3R code inside for cross-checks
#   ./build.sh --no-upstream    without it (nothing is cloned; `compare` and `--engine upstream` are then not available)
#   ./build.sh --tag NAME       another name
#
# Every other argument goes to `docker build`, for example
#   --build-arg BASE_IMAGE=...       another base: Python >= 3.11 with torch (README: tested versions)
#   --build-arg UPSTREAM_COMMIT=...  another commit of the published code
#   --no-cache, --network host, --progress plain
set -euo pipefail
# shellcheck disable=SC1007  # an empty CDPATH for this one command: cd would print where it went
root=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source=scripts/docker_run.sh
. "$root/scripts/docker_run.sh"

tag=mast3r-sfm:latest
build_args=()
while [ $# -gt 0 ]; do
    case $1 in
    --tag | -t)
        if [ $# -lt 2 ]; then echo "error: $1 needs a name, for example --tag mast3r-sfm:test" >&2 && exit 2; fi
        tag=$2 && shift
        ;;
    --tag=*) tag=${1#--tag=} ;;
    --no-upstream) build_args+=(--build-arg UPSTREAM=none) ;;
    -h | --help) sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0" && exit ;;
    *) build_args+=("$1") ;;
    esac
    shift
done

problem=$(docker_problem)
if [ -n "$problem" ]; then echo "error: $problem" >&2 && exit 2; fi
if ! docker buildx version >/dev/null 2>&1; then
    echo "error: Docker's build plugin is missing; install docker-buildx-plugin (from Docker) or docker-buildx" \
        "(Debian, Ubuntu)" >&2
    exit 2
fi
# A warning only: much of it may be there already, and Docker Desktop keeps its disk where df cannot see it.
wanted_gb=30 # a CUDA development image with torch, its compressed layers beside it while they are unpacked
docker_root=$(docker info --format '{{.DockerRootDir}}')
if [ -d "$docker_root" ]; then
    free_gb=$(df -Pk "$docker_root" | awk 'NR == 2 { print int($4 / 1024 / 1024) }')
    if [ "$free_gb" -lt $wanted_gb ]; then
        echo "warning: $free_gb GB are free in $docker_root and a first build may need $wanted_gb;" \
            "\`docker system prune\` frees what no container uses" >&2
    fi
fi

revision=$(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null || true)
if ! docker build --tag "$tag" --build-arg "REVISION=$revision" \
    ${build_args[@]+"${build_args[@]}"} --file "$root/Dockerfile" "$root"; then
    echo "error: the build failed (see above). If the published code could not be cloned: ./build.sh --no-upstream." \
        "If the disk is full: docker system prune. If the network fails, run it again: finished steps are kept." >&2
    exit 1
fi
echo "Built $tag. Try it: ./predict.sh --docker"
