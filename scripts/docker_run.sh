# shellcheck shell=bash
# Sourced by predict.sh and build.sh: what Docker can do here, and the reconstruction or the server in a container.
#
# Every path an argument names is mounted at its own place (/home/me/photos at /home/me/photos), and the container
# starts in the caller's folder. So arguments need no translation, relative paths mean what they mean outside, and the
# paths in messages and in cameras.json are the caller's. Works with bash 3.2 (macOS).

docker_problem() { # prints what keeps Docker from being used and the cure, or nothing
    local message
    if ! command -v docker >/dev/null 2>&1; then
        echo "Docker is not installed; see https://docs.docker.com/engine/install"
    elif ! message=$(docker info --format '{{.ServerVersion}}' 2>&1); then
        case $message in
        *"ermission denied"*) echo "Docker refuses this user; add it to the group docker: sudo usermod -aG docker $(id -un), log in again" ;;
        *) echo "the Docker daemon does not answer; start it (sudo systemctl start docker, or Docker Desktop)" ;;
        esac
    fi
}

docker_has_gpu() {
    # the runtime is either registered with the daemon or found by it as a hook
    case $(docker info --format '{{json .Runtimes}}' 2>/dev/null) in
    *'"nvidia"'*) return 0 ;;
    esac
    command -v nvidia-container-runtime-hook >/dev/null 2>&1
}

docker_demo_folder() { # IMAGE -> the photos it carries: the published demo, or the project's own if built without it
    case $(docker image inspect --format '{{index .Config.Labels "mast3r-sfm.upstream"}}' "$1") in
    published) echo /opt/mast3r-sfm/demo_data/NLE_tower ;;
    none) echo /opt/mast3r-sfm/demo_data ;;
    *)
        echo "error: $1 is not an image of this project; build it with ./build.sh --tag $1, or name another one" \
            "in MAST3R_SFM_IMAGE" >&2
        return 2
        ;;
    esac
}

docker_note_stale_image() { # ROOT IMAGE
    local built here
    built=$(docker image inspect --format '{{index .Config.Labels "org.opencontainers.image.revision"}}' "$2")
    here=$(git -C "$1" rev-parse --short=12 HEAD 2>/dev/null || true)
    if [ -n "$here" ] && [ -n "$built" ] && [ "$built" != "$here" ]; then
        echo "note: $2 was built from revision $built and this is $here; ./build.sh brings it up to date" >&2
    fi
}

# --- mounts ---------------------------------------------------------------------------------------------------------

container_hf_home=/opt/mast3r-sfm/cache/huggingface # as in the Dockerfile, both
container_kernels=/opt/mast3r-sfm/cache/triton

mount_targets=() mount_sources=() mount_modes=()

clean_path() { # PATH -> absolute, without . and .. and doubled slashes; symbolic links are left alone
    local part rest=$1 result=""
    case $rest in /*) ;; *) rest=$PWD/$rest ;; esac
    while [ -n "$rest" ]; do
        part=${rest%%/*}
        case $rest in */*) rest=${rest#*/} ;; *) rest="" ;; esac
        case $part in
        "" | .) ;;
        ..) result=${result%/*} ;;
        *) result=$result/$part ;;
        esac
    done
    printf '%s\n' "${result:-/}"
}

add_mount() { # FOLDER ro|rw [PLACE]: mounts the folder, links in its path resolved, at PLACE (its own name)
    local source target k
    target=$(clean_path "${3:-$1}")
    # shellcheck disable=SC1007
    source=$(CDPATH= cd -P -- "$1" && pwd -P)
    case $target in
    / | /bin | /dev | /etc | /lib | /lib64 | /opt | /opt/conda | /opt/mast3r-sfm | /proc | /run | /sbin | /sys | /usr | /var)
        echo "error: $target cannot be mounted into the container, which has a folder of that name itself;" \
            "move the files to a folder below it, or use --local" >&2
        exit 2
        ;;
    esac
    for ((k = 0; k < ${#mount_targets[@]}; k++)); do
        if [ "${mount_targets[k]}" = "$target" ]; then
            if [ "$2" = rw ]; then mount_modes[k]=rw; fi
            return
        fi
    done
    mount_targets+=("$target") mount_sources+=("$source") mount_modes+=("$2")
}

mount_named_path() { # VALUE DEPTH: if it names something that exists, mounts what is needed to read it there
    local path=${1#pairs:} link
    if [ ! -e "$path" ]; then # a glob for the command to expand: the folder before its first wildcard
        case $path in
        *[*?[]*) path=${path%%[*?[]*} ;;
        *) return 0 ;;
        esac
        case $path in */*) path=${path%/*}/ ;; *) path=. ;; esac
        if [ ! -d "$path" ]; then return 0; fi
    elif [ ! -d "$path" ]; then
        path=$(dirname -- "$path")
    fi
    add_mount "$path" ro
    # Photos may be links to other folders (and weights in a model cache always are): those folders are needed as well,
    # at the place where the link points, seen from inside.
    while IFS= read -r -d '' link; do
        mount_link_target "$link" "$(clean_path "$(dirname -- "$link")")"
    done < <(find "$path/" -maxdepth "$2" -type l -print0)
}

mount_link_target() { # LINK FOLDER-AS-SEEN-INSIDE
    local text
    if [ ! -e "$1" ]; then return 0; fi
    text=$(readlink "$1")
    case $text in /*) ;; *) text=$2/$text ;; esac
    if [ -d "$1" ]; then
        add_mount "$1" ro "$text"
    else
        add_mount "$(dirname -- "$(readlink -f "$1")")" ro "$(dirname -- "$(clean_path "$text")")"
    fi
}

# --- the run --------------------------------------------------------------------------------------------------------

csv_field() { # KEY=VALUE as one field of --mount, whatever the name contains (commas and quotes are allowed in paths)
    case $1 in
    *[,\"]*) printf '"%s"' "${1//\"/\"\"}" ;;
    *) printf '%s' "$1" ;;
    esac
}

docker_reconstruct() { # IMAGE ARGUMENT...
    local image=$1
    shift
    docker_command "$image" reconstruct "$@"
}

docker_serve() { # IMAGE ARGUMENT...: where it is to listen becomes where its port is published
    local image=$1 arg previous="" host=127.0.0.1 port=8000 args=()
    shift
    for arg in "$@"; do
        case $previous in
        --host) host=$arg ;;
        --port) port=$arg ;;
        *)
            case $arg in
            --host | --port) ;;
            --host=*) host=${arg#*=} ;;
            --port=*) port=${arg#*=} ;;
            *) args+=("$arg") ;;
            esac
            ;;
        esac
        case $previous in --host | --port) previous="" ;; *) previous=$arg ;; esac
    done
    if [ "$host" = localhost ]; then host=127.0.0.1; fi
    case $host in *:*) host=[$host] ;; esac
    docker_options=(--publish "$host:$port:$port")
    # inside, it has to listen to other machines, as Docker is one; so it asks for a token
    docker_command "$image" serve --host 0.0.0.0 --port "$port" ${args[@]+"${args[@]}"}
}

docker_options=()

docker_command() { # IMAGE COMMAND ARGUMENT...; docker_options are further options of `docker run`
    local image=$1 command=$2 arg previous="" value output="" name k gid readonly_flag
    shift 2
    cd -P . || exit # from here on PWD has no symbolic link in it, so that .. means the same inside and outside

    for arg in "$@"; do
        value=$arg
        case $arg in --*=*) previous=${arg%%=*} value=${arg#*=} ;; esac
        case $previous in
        --output) output=$value ;;
        --batch) mount_named_path "$value" 2 ;; # photos lie in its subfolders
        *) case $value in -*) ;; *) mount_named_path "$value" 1 ;; esac ;;
        esac
        previous=$arg
    done

    # Results are written beside their place and moved there at the end, so it is the folder above that is mounted; if
    # the output is a link, the one it leads to as well.
    if [ -L "$output" ]; then add_mount "$(dirname -- "$(readlink -f "$output")")" rw; fi
    if [ -n "$output" ]; then output=$(clean_path "$output/.."); else output=$PWD/outputs; fi
    mkdir -p -- "$output" # else Docker would make it, as root
    add_mount "$output" rw

    local cache=${HF_HOME:-$HOME/.cache/huggingface}
    mkdir -p -- "$cache"
    add_mount "$cache" rw "$container_hf_home"

    local run=(run --rm --workdir "$PWD" ${docker_options[@]+"${docker_options[@]}"})
    if [ -t 0 ] && [ -t 1 ]; then run+=(--interactive --tty); fi
    if docker_has_gpu; then
        run+=(--gpus all)
        # kernels are compiled once for it, not in every container
        local kernels=${XDG_CACHE_HOME:-${HOME:-}/.cache}/mast3r-sfm/triton
        if mkdir -p -- "$kernels" 2>/dev/null; then add_mount "$kernels" rw "$container_kernels"; fi
    else
        echo "note: Docker has no GPU runtime here; the reconstructions run on the CPU" >&2
    fi
    case $(docker info --format '{{.SecurityOptions}}' 2>/dev/null) in
    *name=rootless*) run+=(--user 0:0) ;; # there, root inside is the caller outside
    *)
        run+=(--user "$(id -u):$(id -g)")
        for gid in $(id -G); do
            if [ "$gid" != "$(id -g)" ]; then run+=(--group-add "$gid"); fi
        done
        ;;
    esac
    if [ "$(getenforce 2>/dev/null)" = Enforcing ]; then run+=(--security-opt label=disable); fi
    for name in MAST3R_SFM_TOKEN HF_TOKEN HF_HUB_OFFLINE HF_ENDPOINT CUDA_VISIBLE_DEVICES NO_COLOR \
        http_proxy https_proxy no_proxy all_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY; do
        if [ -n "${!name:-}" ]; then run+=(--env "$name"); fi # by name: a token has no place in a process list
    done
    for ((k = 0; k < ${#mount_targets[@]}; k++)); do
        readonly_flag=""
        if [ "${mount_modes[k]}" = ro ]; then readonly_flag=,readonly; fi
        run+=(--mount "type=bind,$(csv_field "source=${mount_sources[k]}"),$(csv_field "target=${mount_targets[k]}")$readonly_flag")
    done
    exec docker "${run[@]}" "$image" "$command" "$@"
}
