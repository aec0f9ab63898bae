#!/usr/bin/env bash
# Write what Grand Challenge takes: hemseg.tar.gz (the image) and model.tar.gz (the weights, for /opt/ml/model); and
# check them as the platform does.
#
#   ./export.sh [--serve] [FOLDER]      (default: this folder)
#
#   --serve   the image for the platform's HTTP calls, hemseg:serve, instead of hemseg:latest
#
# From the environment: ACCELERATOR, BASE_IMAGE, BUILD_ARGS, see build.sh.
set -euo pipefail
image=hemseg:latest
case ${1:-} in
  --serve) image=hemseg:serve; shift ;;
  -*) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; [[ $1 == -h || $1 == --help ]]; exit ;;
esac
target=$(cd "${1:-$(dirname "${BASH_SOURCE[0]}")}" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")"
fail() { echo "error: $*" >&2; exit 1; }
trap 'rm -f "$target/hemseg.tar.gz.part" "$target/model.tar.gz.part"' EXIT

./build.sh
read -r platform user < <(docker image inspect --format '{{.Os}}/{{.Architecture}} {{.Config.User}}' "$image")
[[ $platform == linux/amd64 ]] || fail "$image is for $platform; the platform runs linux/amd64"
[[ -n $user && $user != root && $user != 0 ]] || fail "$image runs as root; the platform refuses that"

docker save "$image" | gzip -c >"$target/hemseg.tar.gz.part"
images=$(tar -xzOf "$target/hemseg.tar.gz.part" manifest.json | grep -o '"RepoTags"' | wc -l)
[[ $images == 1 ]] || fail "the archive holds $images images instead of one"
bytes=$(stat -c %s "$target/hemseg.tar.gz.part")
((bytes < 10 << 30)) || fail "the archive has $((bytes >> 20)) MiB; the platform takes 10 GiB"

tar -czf "$target/model.tar.gz.part" -C weights --exclude ./torch .
tar -tzf "$target/model.tar.gz.part" | grep -qx './manifest.json' || fail "weights/ holds no manifest.json"
# config ARCHIVE: the digest by which the platform knows an image
config() { tar -xzOf "$1" manifest.json 2>/dev/null | grep -o '"Config":"[^"]*"' || true; }
again=
[[ -s $target/hemseg.tar.gz && $(config "$target/hemseg.tar.gz") == "$(config "$target/hemseg.tar.gz.part")" ]] && again=1
mv "$target/hemseg.tar.gz.part" "$target/hemseg.tar.gz"
mv "$target/model.tar.gz.part" "$target/model.tar.gz"
ls -l "$target/hemseg.tar.gz" "$target/model.tar.gz" | awk '{ printf "%s: %.1f MiB\n", $NF, $5 / 2^20 }'
if [[ -n $again ]]; then
  echo "the image is that of the last export: the platform refuses one that it has already; upload the model alone"
else
  echo "upload each image once: the platform refuses one that it has already"
fi
