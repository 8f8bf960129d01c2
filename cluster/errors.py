"""The one error a user of the cluster meets."""


class ClusterError(Exception):
    """Something the user can read and act on: what failed, and where to look. Shown without a stack trace."""
