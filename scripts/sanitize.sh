#!/usr/bin/env bash
# Builds the package with the kernels under AddressSanitizer and UndefinedBehaviorSanitizer in build/sanitize, and runs
# their tests and a fuzz loop there. Needs GCC.
#
# SECONDS_TO_FUZZ  how long the loop runs  (default: 30)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD

flags="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
CXXFLAGS=$flags LDFLAGS=$flags \
    python -W ignore setup.py -q build --build-lib build/sanitize --build-temp build/sanitize-objects
cd build/sanitize
grep -q __asan_report hvd_compress/native/cpu/*.so || { echo "the kernels were built without the sanitizers" >&2; exit 1; }
LD_PRELOAD=$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so)
export LD_PRELOAD PYTHONPATH=$PWD ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
python -c 'import hvd_compress.native.cpu._kernels as k; assert "sanitize" in k.__file__, k.__file__'
# Not those that need PyTorch, nor the one about the memory that the sanitizers replace.
python -m pytest -q -s -p no:cacheprovider -p no:faulthandler "$root/tests/unit/test_native.py" -k "not tensors and not large_arrays"
python "$root/scripts/fuzz.py" "${SECONDS_TO_FUZZ:-30}"
