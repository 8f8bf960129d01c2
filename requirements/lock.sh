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
compile dev --extra operator --extra api --extra server --extra dev pyproject.toml
# The peer of bench/server runs with the versions that the server runs with.
compile bench --extra server --extra bench --constraints requirements/dev.txt pyproject.toml
compile sbom --extra sbom pyproject.toml
compile docs --extra docs pyproject.toml
