"""Secrets do not get into what is recorded, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import otel_tracking as ot
from otel_tracking.redaction import REDACTED, is_secret, redact, redact_arguments, redact_text

SECRET_NAMES = """
api_key apiKey API-KEY apikey ApiKey WANDB_API_KEY openai_api_key access_key aws_secret_access_key
AWS_ACCESS_KEY_ID secret client_secret secret_key private_key ssh_key token auth_token hf_token
HF_TOKEN accessToken github_token refresh_tokens password db_password dbPassword PASSWORD passwd pwd
passphrase credentials authorization Authorization bearer cookie connection_string conn_str
password2 signing_key DB_PASS smtp_pass creds auth basic_auth OPENAI_KEY wandb_key license_key session_key
accesskey secretkey privatekey github_tokens wandb_tokens pin otp
""".split()  # noqa: SIM905  # a list would be a page long

OTHER_NAMES = """
num_tokens max_tokens token_count tokenizer tokens tokens_per_batch eos_token pad_token bos_token_id
token_type special_tokens key keys num_keys key_dim keyboard secretary author passes password_length
max_new_tokens next_token vocab_token image_token lr monkey turkey key_size attention_key passenger
prefix_token boi_token eoi_token sos_token separator_token img_token video_token masked_token pin_memory
forward_pass compass bypass num_passes keypoints sort_key primary_key hidden_key_size compute_signature
""".split()  # noqa: SIM905  # a list would be a page long


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)
    assert redact({name: "s3cr3t"}) == ({name: REDACTED}, [name])
    assert redact({"outer": {name: ["a", "b"]}})[0] == {"outer": {name: [REDACTED, REDACTED]}}


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_names_of_other_things(name: str) -> None:
    assert not is_secret(name)
    values = {name: "text", "in": {name: 5}}
    assert redact(values) == (values, [])


@pytest.mark.parametrize("value", ["", "  ", None, True, False, 512])
def test_values_that_are_no_secrets(value: Any) -> None:
    assert redact({"token": value}) == ({"token": value}, [])


def test_numbers_are_passwords_too() -> None:
    assert redact({"password": 1234})[0] == {"password": REDACTED}


def test_what_lies_under_a_secret_name() -> None:
    given = {"credentials": {"user": "me", "n": 5, "deep": {"x": ["y"]}}}
    assert redact(given)[0] == {"credentials": {"user": REDACTED, "n": REDACTED, "deep": {"x": [REDACTED]}}}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://user:pass@host/x", "https://host/x"),
        ("https://token@host:8080/x?a=b@c", "https://host:8080/x?a=b@c"),
        ("postgresql+psycopg2://u:p%40@h/db", "postgresql+psycopg2://h/db"),
        ("see ftp://a:b@c and http://d", "see ftp://c and http://d"),
        ("mail me@example.org", "mail me@example.org"),
        ("hf_" + "a" * 34, REDACTED),
        ("use ghp_" + "b" * 36 + " now", f"use {REDACTED} now"),
        ("sk-proj-" + "c" * 40, REDACTED),
        ("AKIA" + "D" * 16, REDACTED),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc", REDACTED),
        ("Authorization: Bearer abcdefghijkl", f"Authorization: Bearer {REDACTED}"),
        ("train.py --api-key=xyz --lr=0.1", f"train.py --api-key={REDACTED} --lr=0.1"),
        ("train.py --api-key xyz --num-tokens 5", f"train.py --api-key {REDACTED} --num-tokens 5"),
        ("HF_TOKEN=abc OMP_NUM_THREADS=4 run", f"HF_TOKEN={REDACTED} OMP_NUM_THREADS=4 run"),
        ('{"password": "x", "user": "y"}', f'{{"password": "{REDACTED}", "user": "y"}}'),
        ("{'password': 'x y', 'n': 5}", f"{{'password': '{REDACTED}', 'n': 5}}"),
        ('{"password": "a\\"b", "token": null}', f'{{"password": "{REDACTED}", "token": null}}'),
        ("Db(password='hunter2', host='h')", f"Db(password='{REDACTED}', host='h')"),
        ("password: x", f"password: {REDACTED}"),
        ("api_key='x y' lr=1", f"api_key='{REDACTED}' lr=1"),
        ("postgres://u:p@ss@host/db", "postgres://host/db"),
        ("mysql://user:pa/ss@host", "mysql://host"),
        ("http://host:8080/x@y", "http://host:8080/x@y"),
        ("http://[::1]:80/x@y", "http://[::1]:80/x@y"),
        ("https://h/f?sv=1&sig=a%2Bb&x=1", f"https://h/f?sv=1&sig={REDACTED}&x=1"),
        ("https://s3/x?X-Amz-Signature=abc", f"https://s3/x?X-Amz-Signature={REDACTED}"),
        ("https://hooks.slack.com/services/T0/B0/x", f"https://hooks.slack.com/services/{REDACTED}"),
        ("tokenizer: bert, num_tokens=5", "tokenizer: bert, num_tokens=5"),
        ("a risk-free sk-ill", "a risk-free sk-ill"),
        ("task-and-disk-space", "task-and-disk-space"),
    ],
)
def test_texts(text: str, clean: str) -> None:
    assert redact_text(text) == clean
    assert redact({"note": text})[0] == {"note": clean}
    assert redact({"list": [text]})[0] == {"list": [clean]}


@pytest.mark.parametrize("value", ["<boi>", "</s>", "<|user|>", "[SEP]"])
def test_tokens_of_texts_are_known_by_their_look(value: str) -> None:
    assert redact({"user_token": value, "token": value}) == ({"user_token": value, "token": value}, [])
    assert redact({"user_token": "abcdef0123"})[0] == {"user_token": REDACTED}


def test_pairs_are_names_and_values() -> None:
    headers = {"headers": [["X-Api-Key", "zz"], ["Accept", "json"]]}
    assert redact(headers) == (
        {"headers": [["X-Api-Key", REDACTED], ["Accept", "json"]]},
        ["headers/X-Api-Key"],
    )
    columns = {"columns": ["token", "tag"]}
    assert redact(columns) == (columns, [])


def test_private_keys() -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"
    assert redact_text(f"a {key} b {key}") == f"a {REDACTED} b {REDACTED}"
    assert redact_text("a -----BEGIN PRIVATE KEY-----\nMIIE") == f"a {REDACTED}"


def test_command_lines() -> None:
    given = [
        "train.py",
        "--api-key",
        "x",
        "--token=y",
        "--lr",
        "0.1",
        "--password",
        "--verbose",
        "https://a:b@c",
        "--api-key",
        "-abc",
        "--password=x y",
        "db.password=x y",
    ]
    assert redact_arguments(given) == [
        "train.py",
        "--api-key",
        REDACTED,
        f"--token={REDACTED}",
        "--lr",
        "0.1",
        "--password",
        "--verbose",
        "https://c",
        "--api-key",
        REDACTED,
        f"--password={REDACTED}",
        f"db.password={REDACTED}",
    ]


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "://",
        "://a:b",
        "eyJ-",
        "-----BEGIN PRIVATE KEY-----",
        "--a=",
        "hf_",
        '"a":"',
        "bearer ",
        "A-",
        "=",
        "password='",
        'token="\\',
        "token: ",
        "?sig=",
        "'a' ",
        "key =",
    ],
)
def test_long_texts_take_no_longer_than_they_are(piece: str) -> None:
    """A pattern that is not linear would take hours here."""
    assert redact_text(piece * (1_000_000 // len(piece))) is not None


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), _json))
def test_any_config(values: dict[str, Any]) -> None:
    once, names = redact(values)
    assert redact(once)[0] == once
    assert once.keys() == values.keys()
    if not names:
        assert once == values


def test_nothing_of_a_secret_reaches_the_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = {"lr": 0.1, "api_key": "s3cr3t-value", "db": {"url": "postgres://me:s3cr3t-value@host/db"}}
    options = {
        "wandb": {"config": {"hf_token": "s3cr3t-value"}, "settings": {"api_key": "s3cr3t-value" + 28 * "x"}}
    }
    with ot.Tracking(log_with=["tensorboard", "mlflow", "wandb"], project_dir=tmp_path) as tracking:
        tracking.init_trackers("secrets", config=config, init_kwargs=options)
        tracking.log({"loss": 1.0}, step=0, log_kwargs={"wandb": {"commit": True, "token": "s3cr3t-value"}})
    (cursor,) = tmp_path.glob("secrets/*/cursors/*wandb.json")
    assert json.loads(cursor.read_text())["run"]["options"] == {"config": {}, "settings": {}}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 3
    assert not [path for path in files if b"s3cr3t-value" in path.read_bytes()]
    assert "api_key" in caplog.text
    assert "db/url" in caplog.text
    assert "hf_token" in caplog.text
    assert "s3cr3t" not in caplog.text
    (params,) = tmp_path.glob("mlartifacts/*/artifacts/config.json")
    assert json.loads(params.read_text()) == {
        "lr": 0.1,
        "api_key": REDACTED,
        "db": {"url": "postgres://host/db"},
    }
