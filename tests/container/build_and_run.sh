#!/usr/bin/env bash
# Builds the image on a base of your choice, with a stand-in for the published code, and runs it without a network.
#
#   tests/container/build_and_run.sh BASE_IMAGE [ARGUMENT OF docker build ...]
#
# BASE_IMAGE needs Python >= 3.11 with torch on its PATH and nothing else; a CPU build does. One is made like this:
#   FROM python:3.12-slim
#   RUN python -m venv /opt/conda && /opt/conda/bin/pip install torch
#   ENV PATH=/opt/conda/bin:$PATH
# The real base, pytorch/pytorch, is of the same shape. Nothing is cloned, and what is built is removed at the end
# (KEEP=1 keeps it). It must not be published: the published code in it is a stand-in. Takes some minutes.
set -euo pipefail
# shellcheck disable=SC1007  # an empty CDPATH for this one command: cd would print where it went
project=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
if [ $# -lt 1 ]; then sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0" && exit 2; fi
base=$1
shift

tag=mast3r-sfm:container-test
scratch=$(mktemp -d)
clean_up() {
    rm -rf "$scratch"
    if [ -z "${KEEP:-}" ]; then docker image rm --force $tag $tag-bare >/dev/null 2>&1 || true; fi
}
trap clean_up EXIT

step() { echo "== $*" >&2; }
fail() {
    echo "FAILED: $*" >&2
    exit 1
}
timed() { # LABEL COMMAND...: runs it and prints how long it took
    local label=$1 start=$SECONDS
    shift
    "$@"
    echo "   $label: $((SECONDS - start)) s" >&2
}
expect_status() { # STATUS COMMAND...
    local want=$1 got=0
    shift
    "$@" || got=$?
    [ "$got" = "$want" ] || fail "exit code $got instead of $want: $*"
}

# a copy of the working tree, so that a source file can be changed and nothing untracked gets in
mkdir "$scratch/project"
(cd "$project" && git ls-files -z --cached --others --exclude-standard | tar --null -T - -cf - --ignore-failed-read) |
    tar -xf - -C "$scratch/project"
cp -r "$project/tests/container/clone" "$scratch/clone"
mkdir -p "$scratch/clone/mast3r/assets/NLE_tower"
cp "$project"/demo_data/view_0[0-2].jpg "$scratch/clone/mast3r/assets/NLE_tower/"
cd "$scratch/project"
build() { ./build.sh --build-arg "BASE_IMAGE=$base" --build-context "clone=$scratch/clone" "$@"; }

step "the Dockerfile's own check"
docker build --check --build-arg "BASE_IMAGE=$base" .

step "build"
timed "build" build --tag $tag "$@"
step "build again after a change of one source file"
echo "# changed" >>src/mast3r_sfm/app/cli.py
timed "rebuild" build --tag $tag "$@"
step "build without the published code"
timed "build, most of it cached" build --no-upstream --tag $tag-bare "$@"
docker images --format '   {{.Repository}}:{{.Tag}} {{.Size}}' | grep -E "container-test|^   ${base%%:*}:" >&2

run() { docker run --rm --network none "$@"; }

step "the base's torch, a user that is not root, no network"
version() { run --entrypoint python "$1" -c 'import torch; print(torch.__version__)'; }
[ "$(version $tag)" = "$(version "$base")" ] || fail "the base's torch was replaced"
[ "$(run --entrypoint id $tag -u)" = 1000 ] || fail "the default user is root"
timed "doctor" run $tag doctor
run $tag doctor | grep -q "ok  *published code" || fail "the stand-in for the published code is not found"

step "a reconstruction by a user without a name, into a mounted folder"
mkdir "$scratch/out" "$scratch/photos"
cp "$project"/demo_data/view_0[0-3].jpg "$scratch/photos/"
chmod 755 "$scratch" "$scratch/photos"
if [ "$(id -u)" = 0 ]; then user=12345:23456 && chown $user "$scratch/out"; else user=$(id -u):$(id -g); fi
timed "reconstruct" run --user "$user" \
    -v "$scratch/photos:/photos:ro" -v "$scratch/out:/out" $tag \
    reconstruct --input /photos --output /out/scene --model-name small --niter 100
for file in scene.glb cameras.json matches.npz reconstruction.npz run.json depth_000.png depth_003.npy; do
    [ -s "$scratch/out/scene/$file" ] || fail "$file is missing"
done
strangers=$(find "$scratch/out" -mindepth 1 ! -uid "${user%:*}")
[ -z "$strangers" ] || fail "files of another user: $strangers"

step "predict.sh: the demo in the container, the caller's files, paths with spaces"
mkdir "$scratch/a caller" "$scratch/hf"
cp -r "$scratch/photos" "$scratch/a caller/my photos"
predict() { (cd "$scratch/a caller" && HF_HOME=$scratch/hf HF_HUB_OFFLINE=1 MAST3R_SFM_IMAGE=$1 "$scratch/project/predict.sh" --docker "${@:2}"); }
timed "predict.sh" predict $tag --niter 20
[ -s "$scratch/a caller/outputs/NLE_tower/scene.glb" ] || fail "no result for the published demo"
predict $tag --input "my photos" --output "scene 1" --niter 20 --as-pointcloud
[ -s "$scratch/a caller/scene 1/scene.glb" ] || fail "no result beside the photos"
[ -O "$scratch/a caller/scene 1/scene.glb" ] || fail "the result belongs to somebody else"
predict $tag-bare --niter 20 --scene-graph swin
[ -s "$scratch/a caller/outputs/demo_data/scene.glb" ] || fail "no result for the project's own demo"

step "the server, which asks other machines for its token and ends in good order"
server=$(docker run --detach --network none --env MAST3R_SFM_TOKEN=0123456789abcdef $tag \
    serve --host 0.0.0.0 --model-name small --output /data/jobs)
status_of() { # TOKEN: the status that /about answers with
    docker exec "$server" python -c 'import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=10)
connection.request("GET", "/about", headers={"Authorization": f"Bearer {sys.argv[1]}"})
print(connection.getresponse().status)' "$1" 2>/dev/null
}
for _ in $(seq 60); do if [ -n "$(status_of x)" ]; then break; fi && sleep 1; done
[ "$(status_of 0123456789abcdef)" = 200 ] || fail "the server does not answer: $(docker logs "$server" 2>&1)"
[ "$(status_of 0123456789abcdeF)" = 401 ] || fail "the server answers without its token"
docker stop --time 30 "$server" >/dev/null
[ "$(docker wait "$server")" = 0 ] || fail "the server does not end in good order: $(docker logs "$server" 2>&1)"
docker rm "$server" >/dev/null

step "verify: the stand-in behind the published interface agrees; without it, a clear message"
small=$(run --entrypoint python $tag -c 'import mast3r_sfm, pathlib; print(pathlib.Path(mast3r_sfm.__file__).parent / "data/small")')
timed "verify" run -v "$scratch/photos:/photos:ro" $tag verify --input /photos --model-name "$small" --image-size 224 --niter 100
expect_status 2 run -v "$scratch/photos:/photos:ro" $tag-bare verify --input /photos
echo "All container checks passed." >&2
