"""Secrets, kept out of what is recorded: by the name of a value, and by what a text looks like."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

REDACTED: Final = "<redacted>"

_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_ALONE: Final = frozenset(
    {"accesskey", "apikey", "auth", "authorization", "authtoken", "bearer", "cookie", "cookies", "creds"}
    | {"credential", "credentials", "otp", "passcode", "passphrase", "passwd", "password", "passwords", "pin"}
    | {"privatekey", "pwd", "secret", "secretkey", "secrets"}
)
"""Words at the end of a name that say it all."""
_NUMBERS_TOO: Final = frozenset(
    {"otp", "pass", "passcode", "passphrase", "passwd", "password", "pwd", "secret"}
)
"""Of these, numbers are secrets as well."""
_PASSES: Final = frozenset(
    {"admin", "database", "db", "ftp", "http", "https", "imap", "ldap", "login", "mail", "mongo", "mysql"}
    | {"pg", "postgres", "proxy", "redis", "root", "smtp", "ssh", "sudo", "user"}
)
"""What stands before `pass` where that is no pass over data."""
_KEYS: Final = frozenset(
    {"access", "account", "anthropic", "api", "auth", "aws", "azure", "comet", "encryption", "gcp", "gemini"}
    | {
        "github",
        "hf",
        "huggingface",
        "license",
        "master",
        "openai",
        "private",
        "secret",
        "service",
        "session",
    }
    | {"signing", "ssh", "swanlab", "wandb"}
)
"""What stands before `key`."""
_TOKENS_OF_TEXT: Final = frozenset(
    {
        "audio",
        "boi",
        "bos",
        "class",
        "cls",
        "current",
        "decoder",
        "end",
        "eoi",
        "eos",
        "first",
        "image",
        "img",
    }
    | {"last", "mask", "masked", "max", "min", "new", "next", "num", "pad", "padding", "per", "prefix", "sep"}
    | {"separator", "sos", "special", "start", "stop", "target", "text", "unk", "video", "vocab"}
)
"""What stands before `token` where that is a piece of text."""
_TOKENS: Final = frozenset(
    {"access", "api", "auth", "bearer", "github", "gitlab", "hf", "id", "openai", "refresh", "secret"}
    | {"session", "slack", "wandb"}
)
"""What stands before `tokens` where these are secrets."""
_TOKEN_OF_TEXT: Final = re.compile(r"\s*(?:<[^<>\s]{1,50}>|\[[^\[\]\s]{1,50}\])\s*")
"""A token of a text, whatever its name: `<boi>`, `</s>`, `<|user|>`, `[SEP]`."""
_ENDINGS: Final = frozenset({"env", "id", "value"})
_LONGEST_NAME: Final = 200

# Every pattern begins with something rare and is bounded, so that no text takes more than linear time.
_USER_INFO: Final = re.compile(
    # A password may have `/` and `@` in it, written as they are. A port is no password.
    r"(?<=://)(?:[^\s/@:?#\[]{0,200}:(?!\d{1,5}(?:[/?#]|\Z))[^\s@]{0,300}@)?(?:[^\s/?#@]{0,500}@){0,9}"
)
_LINK: Final = re.compile(
    r"(?i)([?&](?:sig|signature|x-amz-(?:signature|security-token|credential)|x-goog-signature)="
    r"|hooks\.slack\.com/[a-z]{1,20}/|discord(?:app)?\.com/api/webhooks/)[^\s&\"']{1,2000}"
)
"""Links that let in who has them."""
_TOKEN: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_|gh[opsur]_|github_pat_|glpat-|sk-|xox[abeprs]-|AKIA|ASIA|AIza|npm_|dckr_pat_)"
    r"[A-Za-z0-9_\-]{10,500}"
)
_JWT: Final = re.compile(
    r"(?<![A-Za-z0-9_\-])eyJ[A-Za-z0-9_\-]{8,2000}\.[A-Za-z0-9_\-]{8,4000}\.[A-Za-z0-9_\-]{0,2000}"
)
_HEADER: Final = re.compile(r"(?i)(?<![a-z])(bearer|basic)\s{1,5}[A-Za-z0-9._~+/=\-]{8,4000}")
_NAME: Final = re.compile(
    r"(?<!\S)--?([A-Za-z][\w\-]{0,100})[ =]"  # an option
    r"|(?<![\w\-])[\"']?([A-Za-z_][\w\-]{0,100})[\"']?\s{0,3}[=:]\s{0,3}"
)
"""Up to a value that has a name: `--name x`, `name=x`, `name: x`, `'name': x`."""
_VALUE: Final = re.compile(
    r"(?P<scheme>(?i:bearer|basic)\s{1,5})?"
    r"(?:(?P<quote>\")(?:[^\"\\]|\\.){0,2000}\"|(?P<other>')(?:[^'\\]|\\.){0,2000}'|[^\s&;,\"'(){}\[\]]{1,2000})"
)
_NOTHING: Final = frozenset({"none", "null", "true", "false", '""', "''"})
_ARGUMENT: Final = re.compile(r"((?:--?|[+~]{1,2})?([A-Za-z][\w\-.]{0,200})=)")
_BEGIN: Final = re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----")
_END: Final = re.compile(r"-----END [A-Z ]{0,30}PRIVATE KEY-----")


def is_secret(name: str) -> bool:
    """Whether a value of that name is a secret: `api_key`, `hf_token`, `dbPassword`; not `num_tokens`."""
    return bool(_secret_word(name))


def _secret_word(name: str) -> str:
    words: list[str] = [word.lower() for word in _WORDS.findall(name[-_LONGEST_NAME:])]
    while words and (words[-1].isdigit() or (words[-1] in _ENDINGS and len(words) > 1)):
        words.pop()
    if not words:
        return ""
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last in _ALONE or (last in ("key", "keys") and before in _KEYS):
        return last
    if last == "token" and before not in _TOKENS_OF_TEXT and len(words) > 1:
        return last
    if (last == "tokens" and before in _TOKENS) or (last == "pass" and before in _PASSES):
        return last
    if last in ("string", "str") and before in ("connection", "conn"):
        return last
    return last if last == "token" and len(words) == 1 else ""


def redact(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The same values without secrets, and the names of those that were replaced.

    Args:
        values: What `config.to_jsonable` returns: nested dicts and lists of scalars.
    """
    names: list[str] = []
    redacted = {key: _redact(value, key, key, names) for key, value in values.items()}
    return redacted, names


def without_secrets(values: Any) -> Any:
    """The same nested mappings, without entries that have a secret's name."""
    if not isinstance(values, Mapping):
        return values
    return {key: without_secrets(inner) for key, inner in values.items() if not is_secret(str(key))}


def _redact(value: Any, key: str, name: str, names: list[str]) -> Any:
    word = _secret_word(key)
    if word == "token" and isinstance(value, str) and _TOKEN_OF_TEXT.fullmatch(value):
        return value
    if word:
        hidden = _hide(value, numbers=word in _NUMBERS_TOO)
        if hidden != value:
            names.append(name)
            return hidden
        if not isinstance(value, Mapping | list):
            return value
    match value:
        case str():
            clean = redact_text(value)
            if clean != value:
                names.append(name)
            return clean
        case Mapping():
            return {inner: _redact(each, inner, f"{name}/{inner}", names) for inner, each in value.items()}
        case list():
            pairs = all(
                isinstance(each, list) and len(each) == 2 and isinstance(each[0], str) for each in value
            )
            if pairs:  # of names and values, as headers are given
                return [[each[0], _redact(each[1], each[0], f"{name}/{each[0]}", names)] for each in value]
            return [_redact(each, "", f"{name}/{place}", names) for place, each in enumerate(value)]
    return value


def _hide(value: Any, *, numbers: bool) -> Any:
    """Nothing of a value that has a secret's name, but whether there is one."""
    match value:
        case str():
            return REDACTED if value.strip() else value
        case bool() | None:
            return value
        case int() | float():
            return REDACTED if numbers else value
        case Mapping():
            return {key: _hide(inner, numbers=True) for key, inner in value.items()}
        case list():
            return [_hide(inner, numbers=numbers) for inner in value]
    return value


def redact_text(text: str) -> str:
    """The text without user-info of URLs, tokens that services make, private keys, and `key=secret` pairs."""
    text = "".join(_without_private_keys(text))
    text = _USER_INFO.sub("", text)
    text = _LINK.sub(rf"\1{REDACTED}", text)
    text = _JWT.sub(REDACTED, text)
    text = _TOKEN.sub(REDACTED, text)
    text = _HEADER.sub(rf"\1 {REDACTED}", text)
    return "".join(_without_named_values(text))


def _without_named_values(text: str) -> Iterator[str]:
    """Parts of the text; of a value that has a secret's name, its quotes are left."""
    at = begin = 0
    while found := _NAME.search(text, begin):
        begin = found.end()
        if is_secret(found[1] or found[2]) and (value := _VALUE.match(text, begin)):
            begin = value.end()
            if value[0].lower() not in _NOTHING:
                quote = value["quote"] or value["other"] or ""
                yield f"{text[at : found.end()]}{value['scheme'] or ''}{quote}{REDACTED}{quote}"
                at = begin
    yield text[at:]


def _without_private_keys(text: str) -> Iterator[str]:
    """Parts of the text; a key that has no end is taken to reach to the text's end."""
    at = 0
    while begin := _BEGIN.search(text, at):
        yield text[at : begin.start()] + REDACTED
        end = _END.search(text, begin.end())
        if end is None:
            return
        at = end.end()
    yield text[at:]


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line without secrets: the word after `--api-key`, and all of it behind `--api-key=`.

    Short options are left alone: `-p` is a port as often as a password.
    """
    clean: list[str] = []
    hide = False
    for argument in arguments:
        if hide and not argument.startswith("--"):
            clean.append(REDACTED)
        elif (pair := _ARGUMENT.match(argument)) and is_secret(pair[2]):
            clean.append(f"{pair[1]}{REDACTED}")
        else:
            clean.append(redact_text(argument))
        hide = argument.startswith("--") and "=" not in argument and is_secret(argument[2:])
    return clean
