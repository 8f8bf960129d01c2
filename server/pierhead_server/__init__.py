"""Pierhead's model server: one pod serves one model version over Vertex AI's predict contract."""

VERSION = "0.2.0"  # as in pyproject.toml; the image holds this package without its metadata
