#!/usr/bin/env bash
# Builds the image for real and runs it the way the chart does: read-only root file system, no capabilities, user 10001.
#
# Uses a Docker engine when one answers, else buildah and podman (Debian: apt-get install buildah podman runc mmdebstrap).
# Where the official base image cannot be pulled, a Debian trixie base (Python 3.13 too) stands in for it and is said so.
# CONVOY_TEST_IMAGE names the image; CONVOY_TEST_IMAGE_BUILT=1 tests one that is already there.
set -euo pipefail
cd "$(dirname "$0")/.."

image=${CONVOY_TEST_IMAGE:-localhost/convoy:test}
base=$(sed -n 's/^ARG PYTHON_IMAGE=//p' Dockerfile)
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' service/__init__.py)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
labels=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision")
work=$(mktemp -d)
service=""

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'image-test: %s\n' "$*" >&2; exit 1; }
finish() {
  if [ -n "$service" ]; then "${engine[@]}" rm -f "$service" >/dev/null 2>&1 || true; fi
  rm -rf "$work"
}
trap finish EXIT

if docker version --format '{{.Server.Version}}' >/dev/null 2>&1; then
  engine=(docker)
  limits=()
else
  for tool in buildah podman runc; do
    command -v "$tool" >/dev/null || fail "neither a Docker engine nor $tool is here"
  done
  engine=(podman --runtime runc)
  # Inside a container that has no right to raise limits, podman's defaults are refused.
  limits=(--ulimit nofile=4096:4096 --ulimit nproc=4096:4096 --pull never)
fi

provide_base() {
  podman image exists "$base" && return
  timeout 120 podman pull -q "$base" && return
  command -v mmdebstrap >/dev/null || fail "$base cannot be pulled and mmdebstrap is not here"
  mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip \
    trixie "$work/rootfs.tar"
  # Labelled, so that a stand-in of an earlier run is never taken for the official image.
  podman import -q --change 'LABEL convoy.stand-in-base=debian-trixie' "$work/rootfs.tar" "docker.io/library/$base"
}

build() {
  if [ "${engine[0]}" = docker ]; then
    docker build "${labels[@]}" --tag "$image" .
    return
  fi
  provide_base
  # The machine's certificates and pip configuration are lent to the build, never copied into a layer.
  local mounts=() file
  for file in /etc/ssl/certs/ca-certificates.crt /etc/pip.conf; do
    if [ -f "$file" ]; then mounts+=(-v "$file:$file:ro"); fi
  done
  buildah bud --isolation chroot --network host --pull-never --layers "${mounts[@]}" "${labels[@]}" --tag "$image" .
}

# As the chart's securityContext: what passes here needs nothing that Pod Security "restricted" takes away.
confined=(--network host --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --user 10001:10001)
inside() { "${engine[@]}" run --rm "${limits[@]}" "${confined[@]}" "$@"; }

if [ -z "${CONVOY_TEST_IMAGE_BUILT:-}" ]; then
  say "build $image on $base"
  build
fi
stand_in=$("${engine[@]}" image inspect --format '{{index .Config.Labels "convoy.stand-in-base"}}' "$base" 2>/dev/null || true)
if [ -n "$stand_in" ]; then
  say "NOTE: $base could not be pulled; a $stand_in stand-in carries this image"
fi

say "the user, the file system and what was left behind"
inside --entrypoint python3 "$image" -c '
import os, pathlib, service, sys
assert os.getuid() == 10001 and os.getgid() == 10001, (os.getuid(), os.getgid())
effective = next(line for line in open("/proc/self/status") if line.startswith("CapEff:"))
assert int(effective.split()[1], 16) == 0, effective
for folder in ("/", "/opt/convoy", str(pathlib.Path(service.__file__).parent)):
    try:
        pathlib.Path(folder, "written").touch()
    except OSError:
        continue
    sys.exit(f"{folder} is writable")
pathlib.Path("/tmp/written").touch()
packages = pathlib.Path(service.__file__).parent.parent
left = [str(found) for name in ("pip", "setuptools", "hatchling") for found in packages.glob(name)]
assert not left, left
assert pathlib.Path(service.__cached__).is_file(), "no compiled bytecode"
print("ok: 10001, no capabilities, read-only, compiled, no build tools beside the package")
'

say "convoy --help"
inside "$image" --help | tee "$work/help"
grep -qw run "$work/help" || fail "the help does not name the command run"

say "convoy config: the key is masked"
inside --env CONVOY_API__KEY=sk-image-test "$image" config > "$work/config"
grep -qi bootstrap_servers "$work/config" || fail "the settings are not shown"
if grep -q sk-image-test "$work/config"; then fail "the API key is shown"; fi
echo ok

say "convoy run with no broker: alive, not ready, and SIGTERM ends it with 0"
service=$("${engine[@]}" run -d "${limits[@]}" "${confined[@]}" --env CONVOY_API__KEY=sk-image-test \
  --env CONVOY_KAFKA__BOOTSTRAP_SERVERS=127.0.0.1:1 --env "CONVOY_OPS__PORT=${CONVOY_TEST_PORT:-18080}" "$image")
fail_with_log() {
  "${engine[@]}" logs "$service" 2>&1 | tail -20
  fail "convoy run: $*"
}
answer() { # PATH: the HTTP status, asked from inside so that no port has to be published
  "${engine[@]}" exec "$service" python3 -c '
import os, sys, urllib.error, urllib.request
url = "http://127.0.0.1:" + os.environ["CONVOY_OPS__PORT"] + sys.argv[1]
try:
    print(urllib.request.urlopen(url, timeout=5).status)
except urllib.error.HTTPError as error:
    print(error.code)
except OSError:
    print("none")
' "$1"
}
for _ in $(seq 60); do
  [ "$("${engine[@]}" inspect --format '{{.State.Running}}' "$service")" = true ] || fail_with_log "it ended by itself"
  if [ "$(answer /livez)" = 200 ]; then break; fi
  sleep 0.5
done
for expected in /livez=200 /readyz=503 /metrics=200; do
  status=$(answer "${expected%=*}")
  [ "$status" = "${expected#*=}" ] || fail_with_log "${expected%=*} answers $status"
done
"${engine[@]}" stop --time 55 "$service" >/dev/null
code=$("${engine[@]}" inspect --format '{{.State.ExitCode}}' "$service")
"${engine[@]}" logs "$service" > "$work/log" 2>&1
[ "$code" = 0 ] || fail_with_log "ended with $code"
if grep -q sk-image-test "$work/log"; then fail "the API key is in the log"; fi
echo ok

say "size"
"${engine[@]}" image inspect --format '{{.Size}}' "$image" | awk '{printf "image %.0f MB\n", $1 / 1e6}'
"${engine[@]}" image inspect --format '{{.Size}}' "$base" | awk '{printf "of it the base %.0f MB\n", $1 / 1e6}'
