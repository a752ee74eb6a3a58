#!/usr/bin/env bash
# Builds the source distribution, and a wheel with the kernels for each CPython 3.10 to 3.13 that is found, in dist/, and
# checks them: each wheel is installed into an empty environment, where the kernels must load.
#
# VERSIONS  which ones  (default: 3.10 3.11 3.12 3.13)
#
# Wheels get the manylinux tag that the C library of this machine allows: for older systems build on an older one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { printf 'wheels: %s\n' "$*" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python -m build --sdist --outdir "$work/dist" . >"$work/log" 2>&1 || die "the source distribution could not be built: $(tail -n 20 "$work/log")"
sdist=$(ls "$work"/dist/*.tar.gz)

built= missing=
for version in ${VERSIONS:-3.10 3.11 3.12 3.13}; do
    interpreter=$(command -v "python$version" || true)
    if [ -z "$interpreter" ] || ! "$interpreter" -c 'import venv, ensurepip' 2>/dev/null; then missing="$missing $version"; continue; fi
    # From the source distribution, so that it is shown to be complete.
    "$interpreter" -m pip wheel -q --disable-pip-version-check --no-deps -w "$work/$version" "$sdist" \
        || die "the wheel for Python $version could not be built; see pip's message above"
    "$interpreter" -m zipfile -l "$work/$version"/*.whl | grep -q '_kernels.*\.so ' \
        || die "the kernels for Python $version did not build: for the compiler's messages run $interpreter -m pip wheel -v --no-deps $sdist"
    auditwheel repair -w "$work/dist" "$work/$version"/*.whl >"$work/log" 2>&1 || die "the wheel for Python $version gets no manylinux tag: $(tail -n 5 "$work/log")"
    wheel=$(ls "$work"/dist/*-cp"${version/./}"-*.whl)
    "$interpreter" -m venv "$work/env$version"
    "$work/env$version/bin/pip" install -q --disable-pip-version-check "$wheel"
    (cd "$work" && "env$version/bin/python" -c 'from hvd_compress.native.cpu import _kernels; print(_kernels.__file__)' >/dev/null)
    "$work/env$version/bin/hvd-compress" list topk >/dev/null
    echo "dist/$(basename "$wheel")"
    built="$built $version"
done
[ -n "$built" ] || die "found no CPython of ${VERSIONS:-3.10 3.11 3.12 3.13}"
[ -z "$missing" ] || echo "wheels: none for Python$missing, which is not on this machine" >&2
twine check --strict "$work"/dist/*
rm -rf dist && mv "$work/dist" dist
