#!/usr/bin/env bash
# Builds and checks what a release consists of, and says how to publish it: nothing leaves this machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { printf 'release: %s\n' "$*" >&2; exit 1; }
version=$(python -c 'from hvd_compress.version import __version__; print(__version__)')
[ -z "$(git status --porcelain)" ] || die "there are changes that are not committed"
grep -qE "^## $version, [0-9]{4}-[0-9]{2}-[0-9]{2}$" CHANGELOG.md \
    || die "CHANGELOG.md has no line '## $version, YYYY-MM-DD': date the section of this version, or raise hvd_compress/version.py"
grep -qx "version: $version" CITATION.cff || die "CITATION.cff has another version than $version"
! git rev-parse -q --verify "refs/tags/v$version" >/dev/null || die "there is a tag v$version already: raise hvd_compress/version.py"
bash scripts/wheels.sh
cat <<SAY
dist/ is release $version. To publish it:
    git tag -a v$version -m "hvd_compress $version" && git push origin v$version
    twine upload dist/*
SAY
