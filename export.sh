#!/usr/bin/env bash
# Write what Grand Challenge takes: hemseg.tar.gz (the image) and model.tar.gz (the weights, for /opt/ml/model).
#
#   ./export.sh [FOLDER]      (default: this folder)
#
# From the environment: ACCELERATOR, BASE_IMAGE, BUILD_ARGS, see build.sh.
set -euo pipefail
case ${1:-} in
  -*) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; [[ $1 == -h || $1 == --help ]]; exit ;;
esac
target=$(cd "${1:-$(dirname "${BASH_SOURCE[0]}")}" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")"

./build.sh
docker save hemseg:latest | gzip -c >"$target/hemseg.tar.gz.part"
mv "$target/hemseg.tar.gz.part" "$target/hemseg.tar.gz"
tar -czf "$target/model.tar.gz.part" -C weights .
mv "$target/model.tar.gz.part" "$target/model.tar.gz"
ls -l "$target/hemseg.tar.gz" "$target/model.tar.gz" | awk '{ printf "%s: %.1f MB\n", $NF, $5 / 1e6 }'
