"""The cluster's certificates, by openssl: two authorities, and one certificate for each who must prove something."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cluster import commands, settings

# What the components' clocks and the cluster's short life make irrelevant; long enough never to be met.
DAYS = "3650"
CLUSTER_CA = "ca"
FRONT_PROXY_CA = "front-proxy-ca"


@dataclass(frozen=True)
class Certificate:
    """`authority` empty: it signs itself, and others."""

    name: str
    subject: str
    authority: str = CLUSTER_CA
    usage: str = "clientAuth"
    names: Sequence[str] = ()


AUTHORITIES = (
    Certificate(CLUSTER_CA, "/CN=kubernetes-ca", authority=""),
    Certificate(FRONT_PROXY_CA, "/CN=front-proxy-ca", authority=""),
)
CERTIFICATES = (
    Certificate(
        "apiserver",
        "/CN=kube-apiserver",
        usage="serverAuth",
        names=(
            "DNS:kubernetes",
            "DNS:kubernetes.default",
            "DNS:kubernetes.default.svc",
            f"DNS:kubernetes.default.svc.{settings.CLUSTER_DOMAIN}",
            f"IP:{settings.KUBERNETES_SERVICE_IP}",
            f"IP:{settings.NODE_IP}",
        ),
    ),
    Certificate("apiserver-kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client"),
    Certificate("front-proxy-client", "/CN=front-proxy-client", authority=FRONT_PROXY_CA),
    Certificate("admin", "/O=system:masters/CN=admin"),
    Certificate("controller-manager", "/CN=system:kube-controller-manager"),
    Certificate("scheduler", "/CN=system:kube-scheduler"),
    Certificate("kube-proxy", "/CN=system:kube-proxy"),
    Certificate("kube-router", "/CN=kube-router"),
    Certificate("kubelet", f"/O=system:nodes/CN=system:node:{settings.NODE_NAME}"),
    # The gateway's, for who speaks to it over TLS.
    Certificate(
        "gateway", "/CN=pierhead-gateway", usage="serverAuth", names=("DNS:localhost", f"IP:{settings.NODE_IP}")
    ),
    # The apiserver checks the kubelet too (`kubectl logs`, `exec`), by the address it reaches it at.
    Certificate(
        "kubelet-server",
        f"/CN={settings.NODE_NAME}",
        usage="serverAuth",
        names=(f"DNS:{settings.NODE_NAME}", f"IP:{settings.NODE_IP}"),
    ),
)


def make_all(folder: Path, log: Path) -> None:
    """Writes `<name>.crt` and `<name>.key` of every certificate, and the key that signs service account tokens."""
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    for authority in AUTHORITIES:
        commands.run(certificate_command(authority, folder), log=log)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda one: commands.run(certificate_command(one, folder), log=log), CERTIFICATES))
    curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    commands.run(["openssl", "genpkey", *curve, "-out", str(folder / "sa.key")], log=log)
    commands.run(["openssl", "pkey", "-in", str(folder / "sa.key"), "-pubout", "-out", str(folder / "sa.pub")], log=log)


def certificate_command(certificate: Certificate, folder: Path) -> list[str]:
    """One `openssl` call that makes a key and its signed certificate."""
    argv = ["openssl", "req", "-x509", "-days", DAYS, "-subj", certificate.subject, "-nodes"]
    argv += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    argv += ["-keyout", str(folder / f"{certificate.name}.key"), "-out", str(folder / f"{certificate.name}.crt")]
    if certificate.authority:
        argv += ["-CA", str(folder / f"{certificate.authority}.crt")]
        argv += ["-CAkey", str(folder / f"{certificate.authority}.key")]
        extensions = [
            "basicConstraints=critical,CA:false",
            "keyUsage=critical,digitalSignature,keyEncipherment",
            f"extendedKeyUsage={certificate.usage}",
        ]
    else:
        extensions = [
            "basicConstraints=critical,CA:true",
            "keyUsage=critical,keyCertSign,cRLSign,digitalSignature",
        ]
    if certificate.names:
        extensions.append(f"subjectAltName={','.join(certificate.names)}")
    return argv + [part for extension in extensions for part in ("-addext", extension)]
