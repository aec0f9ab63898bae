#!/usr/bin/env bash
# Build the image, run it on test/cases as the platform would and harder, and compare the masks with test/expected.
#
#   ./test.sh
#
# The container runs offline, with a read-only root and input, no capabilities, a random user and 4 GB of memory.
# From the environment: ACCELERATOR, BASE_IMAGE, BUILD_ARGS, see build.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
case ${1:-} in
  "") ;;
  *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; [[ $1 == -h || $1 == --help ]]; exit ;;
esac

./build.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

gpus=()
if [[ ${ACCELERATOR:-cuda} == cuda ]] && command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
  gpus=(--gpus all)
fi

# run INPUT OUTPUT [DOCKER OPTION ...]: one run of the container
run() {
  local input=$1 output=$2
  shift 2
  mkdir -p "$output"
  chmod 777 "$output"
  docker run --rm --platform=linux/amd64 "${gpus[@]}" \
    --network none --memory=4g --memory-swap=4g --shm-size=128m --pids-limit=256 \
    --cap-drop=ALL --security-opt=no-new-privileges --read-only --tmpfs /tmp \
    --user "$((10000 + RANDOM)):$((10000 + RANDOM))" \
    -v "$input:/input:ro" -v "$output:/output" "$@" hemseg:latest
}

# check FOLDER: compare its masks with the expected ones, with the libraries of the image
check() {
  docker run --rm --network none --read-only --entrypoint python -v "$PWD/test:/test:ro" -v "$1:/masks:ro" \
    hemseg:latest /test/compare_masks.py /test/cases /test/expected /masks
}

run "$PWD/test/cases" "$work/batch"
check "$work/batch/images"
[[ -s $work/batch/results.json ]] || { echo "error: results.json is missing" >&2; exit 1; }

mkdir "$work/broken"
cp test/cases/*.mha "$work/broken/"
echo "this is no scan" >"$work/broken/broken.nii.gz"
chmod -R a+rX "$work/broken"
if run "$work/broken" "$work/partial" 2>"$work/stderr"; then
  echo "error: a batch with a broken scan must not exit with 0" >&2
  exit 1
fi
grep -q '^error: /input/broken.nii.gz' "$work/stderr"
grep -q 'broken.nii.gz' "$work/partial/results.json"
for scan in test/cases/*.mha; do [[ -s $work/partial/images/$(basename "$scan") ]]; done
[[ ! -e $work/partial/images/broken.nii.gz ]]
echo "a broken scan is named, the others are done"
echo "test.sh: all checks passed"
