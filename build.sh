#!/usr/bin/env bash
# Build the container images: hemseg:latest (one run a call) and hemseg:serve (the platform's HTTP calls).
#
#   ./build.sh
#
# From the environment:
#   ACCELERATOR   cuda (default) or cpu: whether the CUDA libraries are installed
#   BASE_IMAGE    python:3.11-slim by default
#   BUILD_ARGS    more arguments for `docker build`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
case ${1:-} in
  "") ;;
  *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; [[ $1 == -h || $1 == --help ]]; exit ;;
esac

accelerator=${ACCELERATOR:-cuda}
case $accelerator in
  cuda | cpu) ;;
  *) echo "error: ACCELERATOR is cuda or cpu, not '$accelerator'" >&2; exit 2 ;;
esac
args=(--build-arg "ACCELERATOR=$accelerator")
[[ -n ${BASE_IMAGE:-} ]] && args+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")

for target in batch serve; do
  tag=hemseg:latest
  [[ $target == serve ]] && tag=hemseg:serve
  # shellcheck disable=SC2086  # BUILD_ARGS holds several words
  DOCKER_BUILDKIT=1 docker build --quiet --platform=linux/amd64 "${args[@]}" ${BUILD_ARGS:-} \
    --target "$target" --tag "$tag" . >/dev/null
  bytes=$(docker image inspect --format '{{.Size}}' "$tag")
  echo "built $tag ($accelerator, $((bytes / 1000000)) MB)"
done
