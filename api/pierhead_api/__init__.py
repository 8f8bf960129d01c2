"""Pierhead's REST API: Vertex AI's verbs become custom resources."""
