"""Pierhead's model server: one pod serves one model version over Vertex AI's predict contract."""
