"""Who reaches the pods of the model server, and whom they reach. Pure."""

from collections.abc import Sequence

from pierhead_operator.resources.objects import Manifest
from pierhead_operator.resources.pods import PORT

NETWORK_POLICY = "NetworkPolicy"
_DNS = (
    # To anybody: some clusters ask a cache on the node, which no selector of pods finds.
    {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]},
    # At any port: what counts is that of the pods, which need not be their Service's.
    {
        "to": [
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
            }
        ]
    },
)


def make_network_policy(
    metadata: Manifest, pods: dict[str, str], clients: Sequence[Manifest], egress: Sequence[Manifest]
) -> Manifest:
    """Lets only `clients` reach the pods with these labels, and them nobody but DNS and `egress`.

    `clients` are NetworkPolicyPeers, at least one: none would be all. `egress` are NetworkPolicyEgressRules. The pods'
    node is let in by Kubernetes itself, and with it the kubelet's probes.
    """
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": NETWORK_POLICY,
        "metadata": metadata,
        "spec": {
            "podSelector": {"matchLabels": pods},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [*clients], "ports": [{"port": PORT, "protocol": "TCP"}]}],
            "egress": [*_DNS, *egress],
        },
    }
