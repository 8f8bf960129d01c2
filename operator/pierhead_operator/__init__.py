"""Pierhead's operator: Model, Endpoint, DeployedModel and BatchPredictionJob, reconciled into serving workloads."""
