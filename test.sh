#!/usr/bin/env bash
# Build the images, run them on test/cases in every mode as the platform would and harder, and compare the masks with
# test/expected.
#
#   ./test.sh
#
# Hardened: offline, read-only root and input, no capabilities, no new privileges, a random user, 256 processes, 4 GB of
# memory. From the environment: ACCELERATOR, BASE_IMAGE, BUILD_ARGS, see build.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
case ${1:-} in
  "") ;;
  *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; [[ $1 == -h || $1 == --help ]]; exit ;;
esac

./build.sh
work=$(mktemp -d)
name=hemseg-test-$$
cleanup() {
  docker rm --force "$name" >/dev/null 2>&1 || true
  docker volume rm --force "$name" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT
chmod 755 "$work"

gpus=()
if [[ ${ACCELERATOR:-cuda} == cuda ]] && command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
  gpus=(--gpus all)
fi
# the flags of the platform's own kit, then harder ones
platform=(--platform=linux/amd64 "${gpus[@]}" --network none)
hardened=("${platform[@]}" --memory=4g --memory-swap=4g --shm-size=128m --pids-limit=256
  --cap-drop=ALL --security-opt=no-new-privileges --read-only --tmpfs /tmp)

fail() { echo "error: $*" >&2; exit 1; }
# folder NAME: an output folder that any user may write to
folder() { mkdir -p "$work/$1"; chmod 777 "$work/$1"; echo "$work/$1"; }
someone() { echo "--user=$((10000 + RANDOM)):$((10000 + RANDOM))"; }
# run INPUT OUTPUT [DOCKER OPTION ...]: one hardened run
run() {
  local input=$1 output=$2
  shift 2
  docker run --rm "${hardened[@]}" "$(someone)" -v "$input:/input:ro" -v "$output:/output" "$@" hemseg:latest
}
# judge ARGUMENTS: test/helpers/compare_masks.py, with the libraries of the image
judge() {
  docker run --rm --network none --read-only --entrypoint python -v "$PWD/test:/test:ro" -v "$work:/work:ro" \
    hemseg:latest /test/helpers/compare_masks.py "$@" || fail "the masks are not the expected ones"
}
# holds FOLDER FILE ...: these files and no others
holds() {
  local here=$1 there
  shift
  there=$(cd "$here" && find . -type f -printf '%P\n' | sort)
  [[ $there == "$(printf '%s\n' "$@" | sort)" ]] || fail "$here holds: ${there:-nothing}; expected: $*"
}
# socket FOLDER RELATIVE_PATH: a case as the platform lays it out
socket() {
  mkdir -p "$work/$1/$2"
  cp test/cases/phantom-lobar.mha "$work/$1/$2/4f1c9a.mha"
  printf '[{"socket": {"slug": "ct-image", "super_kind": "Image", "relative_path": "%s"}, "image": {"name": "a.mha"}}]\n' \
    "$2" >"$work/$1/inputs.json"
  chmod -R a+rX "$work/$1"
}
lobar=(/test/cases/phantom-lobar.mha /test/expected/phantom-lobar.mha)

# the images
for image in latest serve; do
  user=$(docker image inspect --format '{{.Config.User}}' "hemseg:$image")
  [[ -n $user && $user != root && $user != 0 ]] || fail "hemseg:$image runs as root"
done
label='{{index .Config.Labels "org.grand-challenge.api-method"}}'
[[ $(docker image inspect --format "$label" hemseg:serve) == invoke ]] || fail "hemseg:serve lacks its label"
[[ $(docker image inspect --format "$label" hemseg:latest) == "" ]] || fail "hemseg:latest must not have the label"

# legacy
output=$(folder legacy)
run "$PWD/test/cases" "$output"
judge /test/cases /test/expected /work/legacy/images
mapfile -t cases < <(ls test/cases)
holds "$output" results.json "${cases[@]/#/images/}"
echo "legacy: passed"

# a batch with a broken scan
mkdir "$work/broken"
cp test/cases/*.mha "$work/broken/"
echo "this is no scan" >"$work/broken/broken.nii.gz"
chmod -R a+rX "$work/broken"
output=$(folder partial)
if run "$work/broken" "$output" 2>"$work/stderr"; then fail "a batch with a broken scan must not exit with 0"; fi
grep -q '^error: /input/broken.nii.gz' "$work/stderr" || fail "the broken scan is not named: $(cat "$work/stderr")"
grep -q 'broken.nii.gz: cannot be read' "$output/results.json" || fail "results.json does not name the broken scan"
mapfile -t good < <(basename -a test/cases/*.mha)
holds "$output" results.json "${good[@]/#/images/}"
echo "a broken scan: named, the others are done"

# a folder of DICOM among images, in JPEG lossless, as scanners like to store it
mkdir -p "$work/studies/lobar" "$(folder series)"
docker run --rm "${hardened[@]}" "$(someone)" -v "$PWD/test:/test:ro" -v "$work/series:/series" -e PYTHONPATH=/opt/app \
  --entrypoint python hemseg:latest /test/helpers/series.py "${lobar[0]}" /series 1.2.840.10008.1.2.4.70
cp "$work"/series/*.dcm "$work/studies/lobar/"
cp test/cases/phantom-healthy.nii.gz "$work/studies/"
chmod -R a+rX "$work/studies"
output=$(folder dicom)
run "$work/studies" "$output"
holds "$output" results.json images/lobar.mha images/phantom-healthy.nii.gz
docker run --rm --network none --read-only --entrypoint python -v "$PWD/test:/test:ro" -v "$work:/work:ro" hemseg:latest -c "
import SimpleITK as sitk
a, b = (sitk.GetArrayFromImage(sitk.ReadImage(p)) for p in ('${lobar[1]}', '/work/dicom/images/lobar.mha'))
assert a.sum() and 2 * (a & b).sum() > 0.99 * (a.sum() + b.sum())" || fail "the mask of the DICOM series is not the expected one"
echo "DICOM: passed"

# gc, with the platform's own flags, and with the weights as its tarball; then hardened, with a report
socket gc images/ct
docker volume create "$name" >/dev/null
output=$(folder platform)
docker run --rm "${platform[@]}" -v "$work/gc:/input:ro" -v "$output:/output" -v "$name:/tmp" \
  -v "$PWD/weights:/opt/ml/model:ro" hemseg:latest
holds "$output" images/hemorrhage-segmentation/output.mha
judge "${lobar[@]}" /work/platform/images/hemorrhage-segmentation/output.mha
output=$(folder gc-out)
run "$work/gc" "$output" -e HEMSEG_OUTPUT_SLUG=ich -e HEMSEG_REPORT_PATH=report.json
holds "$output" images/ich/output.mha report.json
judge "${lobar[@]}" /work/gc-out/images/ich/output.mha
grep -q '"volume_ml"' "$output/report.json" || fail "the report has no volume"
echo "gc: passed"

# gc-generic
socket generic images
output=$(folder generic-out)
run "$work/generic" "$output"
holds "$output" images/4f1c9a.mha results.json
judge "${lobar[@]}" /work/generic-out/images/4f1c9a.mha
echo "gc-generic: passed"

# instance
mkdir "$work/instance"
cp test/cases/phantom-intraparenchymal.nii.gz "$work/instance/001.nii.gz"
chmod -R a+rX "$work/instance"
output=$(folder predict)
run "$work/instance" "$(folder unused)" -v "$output:/predict"
holds "$output" 001.nii.gz
[[ -z $(ls "$work/unused") ]] || fail "mode instance writes to /output"
judge /test/{cases,expected}/phantom-intraparenchymal.nii.gz /work/predict/001.nii.gz
echo "instance: passed"

# the command of docs/scale.md's Kubernetes job, as its pod of index 0 runs it
mkdir -p "$work/shares/0" "$(folder shares-out)"
cp test/cases/phantom-lobar.mha "$work/shares/0/"
chmod -R a+rX "$work/shares"
mapfile -t pod < <(docker run --rm --interactive --network none --entrypoint python hemseg:latest -c "
import re, sys, yaml
job = yaml.safe_load(re.search(r'\`\`\`yaml\n(.*?)\`\`\`', sys.stdin.read(), re.DOTALL)[1])
(container,) = job['spec']['template']['spec']['containers']
print(*(word.replace('\$(JOB_COMPLETION_INDEX)', '0') for word in container['command']), sep='\n')" <docs/scale.md)
docker run --rm "${hardened[@]}" --user=1000:1000 -v "$work/shares:/scans:ro" -v "$work/shares-out:/masks" \
  --entrypoint "${pod[0]}" hemseg:latest "${pod[@]:1}"
judge "${lobar[@]}" /work/shares-out/0/phantom-lobar.mha
echo "the Kubernetes job's command: passed"

# `docker stop` in the middle of a batch
mkdir "$work/many"
for number in {10..59}; do cp test/cases/phantom-lobar.mha "$work/many/$number.mha"; done
chmod -R a+rX "$work/many"
output=$(folder stopped)
docker run --detach --name "$name" "${hardened[@]}" "$(someone)" -v "$work/many:/input:ro" -v "$output:/output" \
  hemseg:latest >/dev/null
until docker logs "$name" 2>/dev/null | grep -q '^\[2/50\]'; do
  [[ $(docker inspect --format '{{.State.Running}}' "$name") == true ]] || fail "the batch ended too early"
  sleep 0.2
done
docker stop "$name" >/dev/null
code=$(docker inspect --format '{{.State.ExitCode}}' "$name")
docker rm "$name" >/dev/null
[[ $code == 143 ]] || fail "a stopped batch should exit with 143, not $code"
grep -q 'not done, stopped' "$output/results.json" || fail "results.json does not say what was not done"
done=$(find "$output/images" -type f | wc -l)
((done >= 2 && done < 50)) || fail "$done masks were written before the stop"
for mask in "$output"/images/*; do
  cmp "$mask" "$work/legacy/images/phantom-lobar.mha" || fail "$mask is not whole"
done
[[ -z $(find "$output" -name '.hemseg-*') ]] || fail "a temporary file is left"
echo "docker stop: $done whole masks, nothing else"

# serve
output=$(folder serve-out)
docker run --detach --name "$name" "${hardened[@]}" "$(someone)" -v "$work/gc:/input:ro" -v "$output:/output" \
  hemseg:serve >/dev/null
# ask METHOD PATH: the status, from inside the container, for it has no network
ask() {
  docker exec "$name" python -c "
import http.client
connection = http.client.HTTPConnection('127.0.0.1', 4743, timeout=300)
try:
    connection.request('$1', '$2')
    print(connection.getresponse().status)
except OSError:
    print('no answer')"
}
until [[ $(ask GET /health) == 200 ]]; do
  [[ $(docker inspect --format '{{.State.Running}}' "$name") == true ]] || fail "no server: $(docker logs "$name" 2>&1)"
  sleep 0.5
done
[[ $(ask POST /invoke) == 201 ]] || fail "/invoke: $(docker logs "$name" 2>&1)"
holds "$output" images/hemorrhage-segmentation/output.mha
judge "${lobar[@]}" /work/serve-out/images/hemorrhage-segmentation/output.mha
echo "this is no scan" >"$work/gc/images/ct/4f1c9a.mha"
[[ $(ask POST /invoke) == 422 ]] || fail "a broken scan should be answered with 422"
[[ $(ask GET /health) == 200 ]] || fail "the server did not live on"
docker stop "$name" >/dev/null
code=$(docker inspect --format '{{.State.ExitCode}}' "$name")
[[ $code == 0 ]] || fail "a stopped server should exit with 0, not $code"
echo "serve: passed"

echo "test.sh: all checks passed"
