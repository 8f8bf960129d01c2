"""The batch worker's speed and memory, measured beside a raw PyTorch loop over the same files in the same run."""
