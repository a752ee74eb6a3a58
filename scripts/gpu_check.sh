#!/bin/sh
# Check everything on a GPU, without any network, in at most 8 minutes: the bytes of every method against the CPU's, two
# processes on one GPU over gloo, one over NCCL, and the times, which go to docs/results/gpu.md and gpu.json.
#
# PYTHON names the interpreter, with PyTorch for CUDA, Triton, pytest, pytest-timeout, pytest-xdist, hypothesis and rich
# (if unset: python3). Ends with 3 where there is no GPU, else with 0 or 1.
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3}
export PYTHONUNBUFFERED=1

$PYTHON -c 'import hvd_compress, torch, sys; sys.exit(3 * (not torch.cuda.is_available()))'
case $? in
0) ;;
3) echo "gpu_check.sh: there is no GPU that PyTorch can use; everything up to here is in order" >&2; exit 3 ;;
*) echo "gpu_check.sh: $PYTHON cannot import hvd_compress and torch" >&2; exit 1 ;;
esac
$PYTHON -c 'import torch, triton; print(torch.cuda.get_device_name(), "PyTorch", torch.__version__, "Triton", triton.__version__)'

status=0
$PYTHON -m pytest -q -p no:cacheprovider -n 6 --timeout=120 tests/unit/test_gpu.py || status=1
$PYTHON -m pytest -q -p no:cacheprovider -n 4 --timeout=120 tests/gpu || status=1
$PYTHON -m benchmarks.gpu --write || status=1
exit $status
