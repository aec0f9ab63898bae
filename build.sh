#!/usr/bin/env bash
# Build the container images: hemseg:latest (one run a call) and hemseg:serve (the platform's HTTP calls).
#
#   ./build.sh            both images
#   ./build.sh --sbom     also sbom.cdx.json, the packages in hemseg:latest (CycloneDX 1.6)
#
# From the environment:
#   ACCELERATOR   cuda (default) or cpu: whether the CUDA libraries are installed
#   BASE_IMAGE    python:3.11-slim by default
#   BUILD_ARGS    more arguments for `docker build`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
sbom=
case ${1:-} in
  "") ;;
  --sbom) sbom=1 ;;
  *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; [[ $1 == -h || $1 == --help ]]; exit ;;
esac

accelerator=${ACCELERATOR:-cuda}
case $accelerator in
  cuda | cpu) ;;
  *) echo "error: ACCELERATOR is cuda or cpu, not '$accelerator'" >&2; exit 2 ;;
esac
args=(--build-arg "ACCELERATOR=$accelerator")
[[ -n ${BASE_IMAGE:-} ]] && args+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")

# image TARGET TAG: build and tag it
image() {
  # shellcheck disable=SC2086  # BUILD_ARGS holds several words
  DOCKER_BUILDKIT=1 docker build --quiet --platform=linux/amd64 "${args[@]}" ${BUILD_ARGS:-} \
    --target "$1" --tag "$2" . >/dev/null
}

for target in batch serve; do
  tag=hemseg:latest
  [[ $target == serve ]] && tag=hemseg:serve
  image "$target" "$tag"
  bytes=$(docker image inspect --format '{{.Size}}' "$tag")
  echo "built $tag ($accelerator, $((bytes / 1000000)) MB)"
done
if [[ -n $sbom ]]; then
  image inventory hemseg:inventory
  docker run --rm --network none --entrypoint cat hemseg:inventory /sbom.cdx.json >sbom.cdx.json.part
  mv sbom.cdx.json.part sbom.cdx.json
  docker image rm hemseg:inventory >/dev/null
  echo "wrote sbom.cdx.json ($(grep -c '"purl"' sbom.cdx.json) packages)"
fi
