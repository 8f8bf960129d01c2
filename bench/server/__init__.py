"""The model server's speed, measured beside a raw PyTorch loop and a peer in the same run."""
