"""Where a key travels, and whom a line trusts: headers, authorities, clients' certificates."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from audits import configure
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fakes_host import Answer, Asked, FakeHost, chat, error

from verifier.errors import ConfigError, EndpointError
from verifier.host.collect import collect, read_outcomes
from verifier.host.endpoint import Endpoint
from verifier.records import Message, Probe, Reply
from verifier.steps import make_endpoint

KEY = "sk-invented-5f2b9c1d"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A private authority, and what it vouches for, as PEM files."""

    ca: Path
    host: Path  # certificate and key
    client: Path
    client_key: Path
    locked_key: Path  # the same with a passphrase


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Made anew, so that nothing secret lies among the tests."""
    folder = tmp_path_factory.mktemp("tls")
    own = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("Private Authority", own, own, authority=True)
    (folder / "ca.pem").write_bytes(_pem(ca))
    for name in ("host", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        made = _pem(_certificate(name, key, own))
        (folder / f"{name}.key").write_bytes(_key(key))
        (folder / f"{name}.pem").write_bytes(made + (_key(key) if name == "host" else b""))
        lock = serialization.BestAvailableEncryption(b"a passphrase")
        (folder / f"{name}.locked").write_bytes(_key(key, lock))
    return Authority(
        ca=folder / "ca.pem", host=folder / "host.pem", client=folder / "client.pem",
        client_key=folder / "client.key", locked_key=folder / "client.locked",
    )  # fmt: skip


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, *,
    authority: bool = False,
) -> x509.Certificate:  # fmt: skip
    now = datetime.now(UTC)
    names = [x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]
    issuer = [x509.NameAttribute(x509.NameOID.COMMON_NAME, "Private Authority")]
    spoken = [x509.IPAddress(ip_address("127.0.0.1"))]
    keys = x509.SubjectKeyIdentifier.from_public_key
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name(names))
        .issuer_name(x509.Name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(spoken), critical=False)
        .add_extension(keys(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False
        )
        .sign(by, hashes.SHA256())
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key(
    key: ec.EllipticCurvePrivateKey,
    lock: serialization.KeySerializationEncryption | None = None,
) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        lock or serialization.NoEncryption(),
    )  # fmt: skip


def served(authority: Authority, *, asks: bool = False) -> ssl.SSLContext:
    """How the host speaks TLS; `asks`: it wants a certificate of its clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.host)
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority.ca)
    return context


def ask(folder: Path, host: FakeHost, **changes: Any) -> bool:
    """Whether one probe is answered. Raises what collecting raises."""
    settings = Endpoint(
        base_url=host.url, model="m", top_logprobs=0, max_attempts=1, timeout_s=20, **changes
    )
    probe = Probe(
        id="p0", kind="open", max_tokens=8, messages=(Message(role="user", content="p0"),)
    )
    folder.mkdir(exist_ok=True)
    collect(folder, settings, [probe])
    return isinstance(read_outcomes(folder, max_attempts=1)["p0"], Reply)


# -- the key's header ------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["api-key", "X-Api-Key", "Ocp-Apim-Subscription-Key"])
@pytest.mark.parametrize("dialect", ["chat", "messages"])
def test_a_key_travels_in_the_header_that_is_named(
    tmp_path: Path, header: str, dialect: str
) -> None:
    """As it is, in no other header, and in no byte that is written."""

    def script(asked: Asked) -> Answer | dict[str, Any]:
        if asked.headers.get(header.lower()) != KEY:
            return error(401, "Access denied due to missing subscription key")
        if dialect == "chat":
            return chat(f"Your key is {KEY}.")
        return {"content": [{"type": "text", "text": "Paris."}], "stop_reason": "end_turn"}

    with FakeHost(script) as host:
        ask(tmp_path, host, api_key=KEY, api_key_header=header, dialect=dialect)

        (asked,) = host.asked
    carrying = [name for name, value in asked.headers.items() if KEY in value]
    assert carrying == [header.lower()]
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*.jsonl"))


def test_a_host_that_wants_the_key_elsewhere_says_which_setting(tmp_path: Path) -> None:
    """A key that works elsewhere may only lie in the wrong header."""
    with (
        FakeHost(lambda _asked: error(401, "missing subscription key")) as host,
        pytest.raises(EndpointError, match="api_key_header"),
    ):
        ask(tmp_path, host, api_key=KEY, api_key_env="MY_KEY")


# -- private authorities ---------------------------------------------------------------------------


def test_a_private_authority_is_trusted_by_its_file(tmp_path: Path, authority: Authority) -> None:
    """And by nothing else."""
    with FakeHost(lambda _asked: chat(), tls=served(authority)) as host:
        with pytest.raises(EndpointError, match="CERTIFICATE_VERIFY_FAILED"):
            ask(tmp_path / "without", host)

        assert host.asked == []
        assert ask(tmp_path / "with", host, ca_file=authority.ca)


@pytest.mark.parametrize("apart", [True, False], ids=["key apart", "in one file"])
def test_a_client_shows_its_certificate(tmp_path: Path, authority: Authority, apart: bool) -> None:
    """Where the host asks for one; without, nothing is answered."""
    own: dict[str, Any] = {"client_certificate": authority.host}
    if apart:
        own = {"client_certificate": authority.client, "client_key": authority.client_key}
    with FakeHost(lambda _asked: chat(), tls=served(authority, asks=True)) as host:
        with pytest.raises(EndpointError, match="cannot reach"):
            ask(tmp_path / "without", host, ca_file=authority.ca)

        assert host.asked == []
        assert ask(tmp_path / "with", host, ca_file=authority.ca, **own)


# -- files that cannot be used ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ca_file": "nowhere.pem"}, "endpoint.ca_file: .*nowhere.pem cannot be read"),
        ({"ca_file": "."}, "endpoint.ca_file: .* cannot be read"),
        ({"ca_file": "client.key"}, "endpoint.ca_file: .*client.key holds no certificates"),
        ({"client_certificate": "nowhere.pem"}, "endpoint.client_certificate: .* cannot be read"),
        ({"client_certificate": "client.pem"}, "endpoint.client_certificate: .* no certificate"),
        ({"client_certificate": "client.pem", "client_key": "nowhere.key"},
         "endpoint.client_key: .*nowhere.key cannot be read"),
        ({"client_certificate": "client.pem", "client_key": "host.key"}, "no certificate and its"),
        ({"client_certificate": "client.pem", "client_key": "client.locked"}, "passphrase"),
    ],
    ids=str,
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused_by_its_name(
    tmp_path: Path, authority: Authority, changes: dict[str, str], said: str
) -> None:
    """Before anything is sent, and without asking for a passphrase."""
    paths = {name: str(authority.ca.parent / path) for name, path in changes.items()}
    config = configure("https://127.0.0.1:1/v1", tmp_path / "card", tmp_path / "run",
                       endpoint=paths)  # fmt: skip
    with pytest.raises(ConfigError, match=said) as caught:
        make_endpoint(config, api_key=None)

    assert "\n" not in str(caught.value)


def test_a_private_key_in_the_run_folder_is_refused(tmp_path: Path, authority: Authority) -> None:
    """The folder is passed on."""
    run = tmp_path / "run"
    run.mkdir()
    own = run / "own.key"
    own.write_bytes(authority.client_key.read_bytes())
    config = configure("https://h.example/v1", tmp_path / "card", run, endpoint={
        "client_certificate": str(authority.client), "client_key": str(own)})  # fmt: skip

    with pytest.raises(ConfigError, match="lies in the run folder"):
        make_endpoint(config, api_key=None)


def test_paths_and_not_what_they_hold_are_kept(tmp_path: Path, authority: Authority) -> None:
    """A run folder may be read by anybody."""
    config = configure("https://h.example/v1", tmp_path / "card", tmp_path / "run", endpoint={
        "ca_file": str(authority.ca), "client_certificate": str(authority.client),
        "client_key": str(authority.client_key)})  # fmt: skip
    made = make_endpoint(config, api_key=None)

    assert config.model_dump(mode="json")["endpoint"]["client_key"] == str(authority.client_key)
    assert (made.ca_file, made.client_key) == (authority.ca, authority.client_key)
    assert "PRIVATE KEY" not in repr(made)
