#!/usr/bin/env bash
# Sets up everything that `make demo` and `make test` need, in .venv, without root where it can:
# PyTorch, TensorFlow, Open MPI, mpi4py, Horovod built from its PyPI release, and this package.
# A second run finds its stamp and does nothing.
#
# PYTHON   the interpreter to use            (default: python3, else python3.12 ... python3.10)
# VENV     where the environment goes        (default: .venv)
# TENSORFLOW  0 leaves TensorFlow out, and builds Horovod for PyTorch alone  (default: 1)
# XDG_CACHE_HOME  where the built Horovod wheel is kept (default: ~/.cache)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TENSORFLOW=${TENSORFLOW:-1}
TRITON=3.9.0  # interprets the GPU's kernels in the tests; PyTorch's builds for CUDA bring along one of their own
TF_KERAS=2.21.0  # Keras 2, for the tests; it asks for `tensorflow`, of which `tensorflow-cpu` is a build
VENV=${VENV:-.venv}
[ -t 2 ] && quiet= || quiet=-q  # pip's own progress bars on a terminal
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() {  # what is done from now on, and after how many seconds
    printf '\033[1msetup, %4d s:\033[0m %s\n' $SECONDS "$*" >&2
}
die() { printf 'setup failed: %s\n' "$*" >&2; exit 1; }
trap 'die "interrupted; run the same command again to go on from here."' INT TERM

# --- the system's part: an interpreter with venv and headers, a C++ compiler, patch ---------------

suitable() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10}; do
        if suitable "$candidate"; then command -v "$candidate"; return; fi
    done
    return 1
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

missing_packages() {  # Debian's names of what is not there
    local python version
    if python=$(find_python); then
        version=$(version_of "$python")
        "$python" -c 'import venv, ensurepip' 2>/dev/null || echo "python$version-venv"
        "$python" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || echo "python$version-dev"
    elif [ -z "${PYTHON:-}" ]; then
        echo python3 python3-venv python3-dev
    fi
    command -v g++ >/dev/null || echo g++
    command -v patch >/dev/null || echo patch
}

needed=$(missing_packages | xargs)
if [ -n "$needed" ]; then
    install="apt-get update && apt-get install -y $needed"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing system packages: $needed"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $needed >/dev/null; } \
            || die "apt-get could not install them; see its message above, then run: $install"
    else
        die "this machine lacks $needed. Install with: sudo sh -c '$install' (or your system's equivalent), then run the same command again."
    fi
fi
python=$(find_python) || die "no Python 3.10, 3.11 or 3.12 found${PYTHON:+ under PYTHON=$PYTHON}. Install one, or name it: make setup PYTHON=/path/to/python3.11"
version=$(version_of "$python")
pins=requirements/python$version.txt

# --- nothing to do? -------------------------------------------------------------------------------

stamp=$VENV/.setup-stamp
wanted=$(cat scripts/setup.sh scripts/horovod.sh "$pins" patches/*/*.patch setup.py pyproject.toml hvd_compress/native/cpu/*.{cpp,hpp,inc} | sha256sum | cut -c1-16)
wanted="$wanted $(readlink -f "$python") $PWD $TENSORFLOW"
if [ -x "$VENV/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
[ "$free" -ge 6 ] || die "only $free GiB are free here; PyTorch, TensorFlow and the build need 6 (15 with PyTorch's CUDA build). Free some space, or set VENV to a folder on a larger disk."

# --- the environment ------------------------------------------------------------------------------

rm -f "$stamp"
if ! [ -x "$VENV/bin/python" ] || [ "$(version_of "$VENV/bin/python")" != "$version" ]; then
    say "creating $VENV with Python $version"
    "$python" -m venv --clear "$VENV" || die "could not create $VENV; see the message above."
fi
VENV=$(cd "$VENV" && pwd)
export PATH=$VENV/bin:$PATH
say "installing PyTorch, Open MPI, $([ "$TENSORFLOW" = 0 ] || printf 'TensorFlow, ')and tools from $pins"
packages=$VENV/packages.txt
if [ "$TENSORFLOW" = 0 ]; then grep -vE '^(tensorflow|keras|tensorboard|tf-)' "$pins" >"$packages"; else cp "$pins" "$packages"; fi
pip install $quiet -r "$packages" \
    || die "pip could not install $pins. Check the connection to your package index (pip's message is above), then run the same command again."
python -c 'import triton' 2>/dev/null || pip install $quiet --no-deps "triton==$TRITON" \
    || die "pip could not install triton $TRITON; see its message above."
[ "$TENSORFLOW" = 0 ] || pip install $quiet --no-deps "tf_keras==$TF_KERAS" || die "pip could not install tf_keras $TF_KERAS; see its message above."

# --- Horovod: the built wheel from the cache, or built now ----------------------------------------

say "Horovod"
bash scripts/horovod.sh "$VENV/bin/python" || exit 1

say "this package, with its kernels"
rm -f hvd_compress/native/cpu/*.so
pip install -q --no-deps --no-build-isolation -e . || die "this package does not install; see the message above."
python -c 'from hvd_compress.native.cpu import _kernels' \
    || die "the kernels did not build. For the compiler's messages: $VENV/bin/pip install -v --no-deps --no-build-isolation -e ."

echo "$wanted" >"$stamp"
say "done: $VENV"
