"""What the tests of `zoo app` share: a real server in a thread, and files with C2PA credentials."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import uvicorn
from PIL import Image

from detector_zoo.app.analysis import Analyst
from detector_zoo.app.options import Options
from detector_zoo.app.server import build

from conftest import encoded, photo

AI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@contextmanager
def running(options: Options, analyst: Analyst) -> Iterator[str]:
    """Serve on a free port of the loopback; yields the address."""
    server = uvicorn.Server(uvicorn.Config(build(options, analyst), port=0, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


def jpeg(seed: int = 0, width: int = 96, height: int = 64, **options: Any) -> bytes:
    return encoded(photo(width, height, seed), "JPEG", **{"quality": 90, **options})


@cache
def _identity() -> tuple[bytes, bytes]:
    """A certificate chain of our own (PEM), and the key of its end (PEM)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def name(text: str) -> x509.Name:
        parts = {NameOID.COMMON_NAME: text, NameOID.ORGANIZATION_NAME: "Test Studio", NameOID.COUNTRY_NAME: "GB"}
        return x509.Name([x509.NameAttribute(kind, value) for kind, value in parts.items()])

    def certificate(subject: str, of: ec.EllipticCurvePrivateKey, is_root: bool) -> x509.Certificate:
        usages = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
        )
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=is_root, crl_sign=is_root, decipher_only=False, **usages
        )
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("Test Root"))
            .public_key(of.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - timedelta(days=1))
            .not_valid_after(datetime.now(UTC) + timedelta(days=30))
            .add_extension(x509.BasicConstraints(is_root, None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(of.public_key()), critical=False)
            .add_extension(issuer, critical=False)
        )
        if not is_root:
            builder = builder.add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False
            )
        return builder.sign(root_key, hashes.SHA256())

    chain = [certificate("Test Signer", key, False), certificate("Test Root", root_key, True)]
    pem = b"".join(link.public_bytes(serialization.Encoding.PEM) for link in chain)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem, secret


def signed(data: bytes, generator: str = "Test Painter", source: str = AI, mime: str = "image/jpeg") -> bytes:
    """The file with C2PA credentials that a stranger signed."""
    import c2pa

    chain, key = _identity()
    manifest: Mapping[str, Any] = {
        "claim_generator_info": [{"name": generator, "version": "1.0"}],
        "assertions": [
            {"label": "c2pa.actions", "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": source}]}}
        ],
    }
    info = c2pa.C2paSignerInfo(alg=c2pa.C2paSigningAlg.ES256, sign_cert=chain, private_key=key, ta_url=None)
    made = io.BytesIO()
    with c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest) as builder:
        builder.sign(signer, mime, io.BytesIO(data), made)
    return made.getvalue()


def opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image
