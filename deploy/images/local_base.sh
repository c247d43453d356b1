#!/usr/bin/env bash
# Makes a base image with Python from Debian's packages, for machines that reach no image registry:
#   deploy/images/local_base.sh localhost/python-base
#   make images FLAGS="--build-arg PYTHON_IMAGE=localhost/python-base --build-arg PYTHON_HEADERS=python3-dev"
# Needs root, debootstrap and buildah.
set -euo pipefail

name=${1:?usage: local_base.sh IMAGE [SUITE]}
suite=${2:-bookworm}
folder=$(mktemp -d)
container=
trap '[ -z "$container" ] || buildah rm "$container" >/dev/null; rm -rf "$folder"' EXIT

debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$folder/tree" >"$folder/log" 2>&1 || {
    tail -n 20 "$folder/log" >&2
    exit 1
}
rm -rf "$folder"/tree/var/cache/apt/archives/*.deb "$folder"/tree/var/lib/apt/lists/*
container=$(buildah from scratch)
buildah add --quiet "$container" "$folder/tree" /
buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
buildah commit --quiet "$container" "$name"
