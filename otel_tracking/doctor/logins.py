"""Whether a tracker is kept offline here, and whether it can log in: never what with."""

from __future__ import annotations

import netrc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from otel_tracking import settings
from otel_tracking.capabilities import Declaration, File, Netrc, Switch
from otel_tracking.doctor.finding import Finding, ok, problem, remark
from otel_tracking.doctor.places import find, is_on, look_up, setting, value
from otel_tracking.doctor.servers import Named, named
from otel_tracking.reach import scheme_of

_NOTHING_DELIVERED: Final = Switch(settings.DELIVERY.variable, "off")


@dataclass(frozen=True, slots=True)
class Standing:
    """What a tracker may do on this machine."""

    findings: tuple[Finding, ...]
    servers: tuple[Named, ...]
    """Those that it will use: none if it is kept offline, or has no login that it needs."""


def look_at_login(name: str, declaration: Declaration, environment: Mapping[str, str]) -> Standing:
    """What a tracker may do on this machine."""
    all_named = (named(server, environment) for server in declaration.servers)
    servers = tuple(each for each in all_named if each is not None)
    offline = _kept_offline(declaration, environment)
    asks = bool(declaration.credentials or declaration.credential_files)
    if not asks:
        return Standing((), () if offline else servers)
    found, hints = _login(name, declaration, servers, environment)
    if not found and not declaration.needs_login:
        found = next((f"{each.by} has a login" for each in servers if each.has_user), "")
    if found:
        text = f"{found}; kept offline by {offline}" if offline else found
        return Standing((ok(name, text),), () if offline else servers)
    if offline:
        return Standing((ok(name, f"no login, and none needed: {offline}"),), ())
    half, fix = _how_to_log_in(declaration, environment)
    complaints = tuple(hint for hint in hints if isinstance(hint, Finding))
    if declaration.needs_login:
        if "=" in declaration.offline:
            fix = f"{fix}, or {declaration.offline}" if fix else f"set {declaration.offline}"
        reasons = [half, *(hint for hint in hints if isinstance(hint, str))]
        text = "; ".join(["there is no login", *filter(None, reasons)])
        return Standing((*complaints, problem(name, text, fix)), ())
    what_for = (
        f"only needed for {declaration.login_is_for}" if declaration.login_is_for else "it works without"
    )
    text = f"no login ({half or _spelled(declaration)}); {what_for}"
    # The default is its makers' server, which lets nobody in; one that the user named may.
    return Standing(
        (*complaints, remark(name, text, fix if half else "")),
        tuple(each for each in servers if not each.is_default),
    )


def _kept_offline(declaration: Declaration, environment: Mapping[str, str]) -> str:
    for switch in (_NOTHING_DELIVERED, *declaration.switches):
        if is_on(switch, environment):
            return f"{switch.variable}={value(switch.variable, environment):.20}"
    return ""


def _spelled(declaration: Declaration) -> str:
    return ", ".join(_together(each) for each in declaration.credentials)


def _together(names: str | tuple[str, ...]) -> str:
    return names if isinstance(names, str) else " and ".join(names)


def _how_to_log_in(declaration: Declaration, environment: Mapping[str, str]) -> tuple[str, str]:
    """What is half done, if something is; and the fix."""
    for names in declaration.credentials:
        if isinstance(names, str):
            continue
        missing = [each for each in names if not value(each, environment)]
        given = [each for each in names if each not in missing]
        if given and missing:
            verb = "is" if len(given) == 1 else "are"
            return f"{' and '.join(given)} {verb} set without {' and '.join(missing)}", (
                f"set {' and '.join(missing)}"
            )
    return "", f"set {_together(declaration.credentials[0])}" if declaration.credentials else ""


def _login(
    name: str, declaration: Declaration, servers: tuple[Named, ...], environment: Mapping[str, str]
) -> tuple[str, list[Finding | str]]:
    """What logs in, empty if nothing does; and then what is to be known of files that don't."""
    for names in declaration.credentials:
        together = (names,) if isinstance(names, str) else names
        if all(value(each, environment) for each in together):
            return f"{' and '.join(together)} {'is' if len(together) == 1 else 'are'} set", []
    hints: list[Finding | str] = []
    for file in declaration.credential_files:
        if isinstance(file, File):
            if said := look_up(file, environment):
                return f"{said[0]} has a login", []
            continue
        for hint in _in_netrc(name, file, servers, environment):
            if isinstance(hint, _Login):
                return hint.text, []
            hints.append(hint)
    return "", hints


@dataclass(frozen=True, slots=True)
class _Login:
    text: str


def _in_netrc(
    name: str, rule: Netrc, servers: tuple[Named, ...], environment: Mapping[str, str]
) -> Iterator[_Login | Finding | str]:
    place = find(rule.places, environment)
    hosts = [
        host
        for each in servers
        if each.is_variables or not rule.any_machine
        if (host := each.host(rule.ports))
    ]
    if place is None or not (hosts or rule.any_machine):
        return
    shown, path = place
    if not path.is_file():
        if shown.startswith("$"):
            yield f"{path} of {setting((shown,))} is not there"
        return
    try:
        known = netrc.netrc(str(path))
    except netrc.NetrcParseError as error:
        # Its message may hold what stands there; the number of the line holds no secret.
        where = f"line {error.lineno} of {path}" if error.lineno else str(path)
        yield problem(name, f"{where} can't be read as a netrc file", f"correct {where}")
        return
    except OSError as error:
        yield problem(name, f"{path} can't be read: {error.strerror}", f"chmod u+r {path}")
        return
    except ValueError:  # no text
        yield problem(name, f"{path} is no text file", _another(rule, str(path)))
        return
    hosts = hosts or list(known.hosts)[:1]
    for host in hosts:
        if _password(known, rule, host):
            yield _Login(f"{shown} has a login for {host}")
    if hosts:
        yield f"{shown} has none for {', '.join(hosts)}"


def _another(rule: Netrc, path: str) -> str:
    name = setting(rule.places)
    return f"correct {path}, or set {name} to another file" if name else f"correct {path}"


def _password(known: netrc.netrc, rule: Netrc, host: str) -> bool:
    machines = {host, rule.aliases.get(host, host)}
    if rule.any_machine:  # there a machine may be the whole address
        machines |= {each for each in known.hosts if scheme_of(each) and each.partition("://")[2] == host}
    return any((entry := known.authenticators(machine)) and entry[2] for machine in machines)
