"""A real one-node Kubernetes on this machine, made of the real binaries, without Docker or systemd."""
