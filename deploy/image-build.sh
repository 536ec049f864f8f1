#!/usr/bin/env bash
# Builds the image from the Dockerfile: deploy/image-build.sh [NAME]. Prints its size and what of it is the base.
#
# Uses a Docker engine when one answers, else buildah and podman (Debian: apt-get install buildah podman runc mmdebstrap).
# Where the official base image cannot be pulled, a Debian trixie base (Python 3.13 too) stands in for it and is said so.
set -euo pipefail
cd "$(dirname "$0")/.."

image=${1:-localhost/convoy:test}
base=$(sed -n 's/^ARG PYTHON_IMAGE=//p' Dockerfile)
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' service/__init__.py)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
arguments=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision" --tag "$image")

provide_base() {
  podman image exists "$base" && return
  timeout 120 podman pull -q "$base" && return
  command -v mmdebstrap >/dev/null || { echo "image-build: $base cannot be pulled and mmdebstrap is not here" >&2; exit 1; }
  local work
  work=$(mktemp -d)
  mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip trixie "$work/rootfs.tar"
  # Labelled, so that a stand-in of an earlier run is never taken for the official image.
  podman import -q --change 'LABEL convoy.stand-in-base=debian-trixie' "$work/rootfs.tar" "docker.io/library/$base"
  rm -r "$work"
}

if docker version --format '{{.Server.Version}}' >/dev/null 2>&1; then
  engine=docker
  # BuildKit would keep the base to itself, and its size could not be told.
  docker pull --quiet "$base"
  docker build "${arguments[@]}" .
else
  engine=podman
  for tool in buildah podman runc; do
    command -v "$tool" >/dev/null || { echo "image-build: neither a Docker engine nor $tool is here" >&2; exit 1; }
  done
  provide_base
  # The machine's certificates and pip configuration are lent to the build, never copied into a layer.
  mounts=()
  for file in /etc/ssl/certs/ca-certificates.crt /etc/pip.conf; do
    if [ -f "$file" ]; then mounts+=(-v "$file:$file:ro"); fi
  done
  buildah bud --isolation chroot --network host --pull-never --layers "${mounts[@]}" "${arguments[@]}" .
fi

megabytes() { "$engine" image inspect --format '{{.Size}}' "$1" | awk '{printf "%.0f", $1 / 1e6}'; }
echo "$image: $(megabytes "$image") MB, of it the base $base $(megabytes "$base") MB"
stand_in=$("$engine" image inspect --format '{{index .Config.Labels "convoy.stand-in-base"}}' "$base")
if [ -n "$stand_in" ] && [ "$stand_in" != "<no value>" ]; then
  echo "NOTE: $base could not be pulled; a stand-in ($stand_in) carries this image"
fi
