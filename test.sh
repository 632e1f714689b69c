#!/usr/bin/env bash
# Everything that must hold before a change goes in: formatting, lint, types, scripts, Dockerfile, tests.
#
#   ./test.sh                   all of it, without the tests marked slow or gpu
#   ./test.sh --slow --gpu      with them (either or both)
#   ./test.sh --no-lint -k rope tests/test_network.py      pytest alone; every other argument is pytest's
#
# The first run makes .venv and installs the locked versions; later ones install nothing. On a machine without Docker
# the image itself is not built here: see tests/container/.
set -euo pipefail
# shellcheck disable=SC1007  # an empty CDPATH for this one command: cd would print where it went
root=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
cd "$root"
# shellcheck source=scripts/setup_venv.sh
. scripts/setup_venv.sh

lint=true slow=false gpu=false
pytest_args=()
for arg in "$@"; do
    case $arg in
    --slow) slow=true ;;
    --gpu) gpu=true ;;
    --no-lint) lint=false ;;
    -h | --help) sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0" && exit ;;
    *) pytest_args+=("$arg") ;;
    esac
done

setup_venv "$root" dev
export PATH=$root/.venv/bin:$PATH

step() {
    echo "== $*"
    "$@"
}

if $lint; then
    step ruff check .
    step ruff format --check .
    step mypy
    step lint-imports
    step shellcheck -x build.sh predict.sh test.sh .ci/run scripts/*.sh tests/container/*.sh
    step hadolint Dockerfile
fi
case $slow,$gpu in
false,false) markers="not slow and not gpu" ;;
true,false) markers="not gpu" ;;
false,true) markers="not slow" ;;
true,true) markers="" ;;
esac
# last, so that pytest's summary closes the run
step python -m pytest -m "$markers" ${pytest_args[@]+"${pytest_args[@]}"}
