#!/usr/bin/env bash
# compute-sanitizer over our CUDA kernels: the probes, and one small problem for each way through
# the kernels. Not Triton's, which take their time to compile, nor stock PyTorch's.
#
#   PYTHON=.venv/bin/python tests/gpu/sanitize.sh memcheck racecheck
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

PYTHON=${PYTHON:-python3}
if ! command -v compute-sanitizer >/dev/null; then
  echo "compute-sanitizer is not on PATH; it is part of the CUDA toolkit" >&2
  exit 1
fi
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "compute-sanitizer needs a CUDA device, and this torch sees none" >&2
  exit 1
fi

# Bands copied with cp.async, one and two of them, or unfolded; every number of live frames; both
# widths of a slice of M, both sizes of a tile; both kinds of convolution, wide and narrow.
tiles=tests/gpu/test_cuda_tiles.py
cases=(
  "$tiles::test_fused_tile[4x144x3-two_bands-bfloat16]"
  "$tiles::test_fused_tile[2x144x2-one_band-float16]"
  "$tiles::test_fused_tile[4x48x1-two_bands-float16]"
  "$tiles::test_fused_tile[4x144x2-narrow-float16]"
  "$tiles::test_fused_tile[2x48x3-narrow-bfloat16]"
  "$tiles::test_conv_tile[4x144-wide-bfloat16]"
  "$tiles::test_conv_tile[4x96-narrow-bfloat16]"
  "$tiles::test_conv_tile[2x64-narrow-float16]"
)
# Training: phases, parts, every tile of each weight's gradient and most of the others, narrow and wide.
training=tests/gpu/test_cuda_training_tiles.py
cases+=(
  "$training::test_every_tile[odd-bfloat16-0-3]"
  "$training::test_every_tile[odd-float16-3-1]"
  "$training::test_every_tile[stem-bfloat16-1-3]"
  "$training::test_every_tile[odd-bfloat16-2-3]"
)
# Without torch's cache of blocks, so that a step beyond one of them is seen.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
status=0
for tool in "$@"; do
  compute-sanitizer --tool "$tool" --kernel-name kns=r21d --error-exitcode 9 \
    "$PYTHON" -m pytest tests/gpu/test_probes.py "${cases[@]}" -q -p no:cacheprovider || status=1
done
exit $status
