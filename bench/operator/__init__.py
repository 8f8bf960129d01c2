"""The operator's scale and speed, measured on a real API server whose nodes and pods are played by kwok."""
