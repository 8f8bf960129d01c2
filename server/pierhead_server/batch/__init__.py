"""The batch worker: one process that predicts one shard of a BatchPredictionJob. `docs/batch.md` tells the whole.

`plan`, `lines`, `instances` and `parts` are pure; `storage` does all I/O with storage; `shard` is the flow.
"""
