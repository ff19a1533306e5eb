"""Addresses of servers, proxies before them, and what exporters ask before an SDK does."""

from __future__ import annotations

import os
import socket

import pytest

from otel_tracking.errors import Retry
from otel_tracking.reach import Address, address, knock, proxied
from otel_tracking_exporters._servers import require_answer


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://host", "host:80"),
        ("https://host/path", "host:443"),
        ("https://user:s3cr3t@host:8443", "host:8443"),
        ("grpc://host", "host:4317"),
        ("aim://host", "host:53800"),
        ("http://[::1]:5000", "[::1]:5000"),
    ],
)
def test_addresses(url: str, shown: str) -> None:
    assert str(address(url)) == shown


def test_what_is_no_address() -> None:
    assert address("http:///x") is None
    for url in ("http://[::1", "http://host:port", "http://host:70000"):
        with pytest.raises(ValueError, match=r"."):
            address(url)


@pytest.mark.parametrize(
    ("variables", "server", "is_proxied"),
    [
        ({}, "https://host", False),
        ({"HTTPS_PROXY": "http://p:1"}, "https://host", True),
        ({"https_proxy": "http://p:1"}, "https://host", True),
        ({"HTTP_PROXY": "http://p:1"}, "https://host", False),
        ({"HTTP_PROXY": "http://p:1"}, "http://host", True),
        ({"ALL_PROXY": "http://p:1"}, "https://host", True),
        ({"HTTPS_PROXY": "http://p:1"}, "grpc://host", True),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "host"}, "https://host", False),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "other, .lan"}, "https://a.lan", False),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "other"}, "https://host", True),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "host:8000"}, "https://host:8000", False),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "https://10.1.2.3", False),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "https://11.1.2.3", True),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, "https://host", False),
    ],
)
def test_proxies(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], server: str, is_proxied: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = address(server)
    assert found is not None
    assert proxied(found) is is_proxied


def test_knocking() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        knock(Address("http", "127.0.0.1", port), 60)
    with pytest.raises(OSError, match="refused"):
        knock(Address("http", "127.0.0.1", port), 60)


def test_what_exporters_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        require_answer(f"http://127.0.0.1:{port}", "MLflow")
    with pytest.raises(Retry, match=rf"no MLflow server at 127\.0\.0\.1:{port} "):
        require_answer(f"http://user:s3cr3t@127.0.0.1:{port}", "MLflow")
    for url in ("sqlite:///x.db", "databricks", "./mlruns", "postgresql://h/db"):
        require_answer(url, "MLflow")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    require_answer(f"http://127.0.0.1:{port}", "MLflow")
