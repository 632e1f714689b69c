# shellcheck shell=bash
# Sourced by predict.sh and test.sh: makes .venv hold the locked packages and the project.
#
#   setup_venv ROOT run|dev     run: what the command needs; dev: the linters and pytest as well
#
# A stamp in .venv records what was installed. It is written last, so an interrupted set-up is taken up again, and
# as long as it matches, nothing is installed and nothing is even started. Works with bash 3.2 (macOS).

find_python() { # prints the interpreter for the environment, or says what is missing
    local candidate too_bare=""
    local candidates=(python3 python3.13 python3.12 python3.11)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    # every candidate is run: a name on the PATH may be a version manager's shim without that version behind it
    for candidate in "${candidates[@]}"; do
        if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then continue; fi
        if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
        too_bare=$candidate
    done
    if [ -n "$too_bare" ]; then
        echo "error: $too_bare cannot make virtual environments; install its venv module" \
            "(Debian, Ubuntu: apt install python3-venv)" >&2
    else
        echo "error: Python 3.11 or newer is needed, and none of these is: ${candidates[*]};" \
            "install one, or name one: PYTHON=/path/to/python3.12 $0" >&2
    fi
    return 1
}

venv_stamp() { # ROOT run|dev -> what .venv must have been made from: the place and the pinned versions
    cd "$1" && echo "$1" && cksum pyproject.toml requirements*.lock && echo "$2"
}

venv_is_current() { # ROOT run|dev
    [ "$(venv_stamp "$1" "$2")" = "$(cat "$1/.venv/stamp-$2" 2>/dev/null)" ]
}

venv_write_stamp() { # ROOT run|dev
    (venv_stamp "$1" "$2") >"$1/.venv/stamp.part" && mv "$1/.venv/stamp.part" "$1/.venv/stamp-$2"
}

venv_logged() { # COMMAND...: on the screen when somebody is watching (torch is a large download), else into a log
    local log=$venv/setup.log
    if [ -t 2 ]; then
        "$@" >&2 && return
    else
        "$@" >>"$log" 2>&1 && return
        tail -n 15 "$log" >&2
    fi
    echo "error: the packages could not be installed (see above). Check the network and the free disk space" \
        "(torch with CUDA takes several GB), then run $0 again: it goes on where it stopped." >&2
    return 1
}

venv_install() { # ROOT run|dev
    local root=$1 kind=$2 python
    local venv=$root/.venv
    if ! "$venv/bin/python" -c 'import pip' >/dev/null 2>&1; then
        python=$(find_python) || return 1
        echo "Creating $venv with $("$python" -V 2>&1) ..." >&2
        "$python" -m venv --clear "$venv" || return 1
    fi
    rm -f "$venv"/stamp-*
    echo "Installing the locked packages into $venv (the first time, this takes minutes) ..." >&2
    local requirements=(-r "$root/requirements.lock" -r "$root/requirements-torch.lock")
    if [ "$kind" = dev ]; then requirements+=(-r "$root/requirements-dev.lock"); fi
    local pip=("$venv/bin/python" -m pip --disable-pip-version-check install)
    venv_logged "${pip[@]}" "${requirements[@]}" || return 1
    venv_logged "${pip[@]}" --no-deps --no-build-isolation --editable "$root" || return 1
    if [ "$kind" = dev ]; then venv_write_stamp "$root" dev || return 1; fi # dev holds all that run needs
    venv_write_stamp "$root" run
}

setup_venv() { # ROOT run|dev
    if venv_is_current "$1" "$2"; then return 0; fi
    # One set-up at a time. The lock belongs to descriptor 9 and so to this shell, not to the short-lived Python that
    # takes it; it goes when the shell ends, however it ends.
    local locker status=0
    locker=$(find_python) || return 1
    exec 9<"$1/pyproject.toml"
    "$locker" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' || return 1
    if ! venv_is_current "$1" "$2"; then # else another set-up finished it while this one waited
        venv_install "$1" "$2" || status=1
    fi
    exec 9<&-
    return $status
}
