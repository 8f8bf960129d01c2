#!/bin/sh
# Pins what pyproject.toml asks for, with hashes and without any registry's address. $1: uv.
set -eu
compile() {
    out=$1
    shift
    "$uv" pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --python-version 3.11 \
        --override requirements/overrides.txt \
        --custom-compile-command "make lock" --output-file "requirements/$out.txt" "$@"
}
uv=$1
compile operator --extra operator --extra api pyproject.toml
compile server --extra server pyproject.toml
# The image without PyTorch has the versions of the one with it.
compile server-openvino --extra server-openvino --constraints requirements/server.txt pyproject.toml
compile dev --extra operator --extra api --extra server --extra dev pyproject.toml
# The peers of bench/server run with the versions that the server runs with.
compile bench-litserve --extra server --extra bench-litserve --constraints requirements/dev.txt pyproject.toml
# BentoML wants some others than these: of what computes, none.
pins=$(mktemp)
grep -oE '^(numpy|openvino|pillow|simplejpeg|torch|torchvision|starlette|uvicorn|uvloop)==[^ ]+' requirements/dev.txt > "$pins"
compile bench-bentoml --extra bench-bentoml --constraints "$pins" pyproject.toml
# Triton's Python backend is built for numpy 1.
sed -i '/^numpy==/d' "$pins"
compile bench-triton --extra bench-triton --constraints "$pins" pyproject.toml
rm "$pins"
compile sbom --extra sbom pyproject.toml
compile docs --extra docs pyproject.toml
