"""Names that a tracker accepts, made from any name, never two from one.

The rule is data that a tracker declares; this module is the only place that escapes.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Final

_ESCAPED = re.compile(r"_x((?:10|[0-9a-f])?[0-9a-f]{1,4})_")  # a code point
_MARK = "_x{}_"  # ends a name that was cut: 16 hex digits, so no code point and no escape
_MARK_LENGTH = 19
_UNFINISHED = re.compile(r"(?:_x[0-9a-f]*)+\Z")


@dataclass(frozen=True, slots=True)
class NameRule:
    """Which names a tracker takes as they are.

    A character that is not allowed becomes `_x<hex>_`; an underscore that would start such a
    sequence by chance is escaped too, so that `unescape` gives every name back. A name over
    the limit is cut and ends in `_x<16 hex digits of its SHA-256>_`, which no other name does.
    """

    forbidden: str = ""
    """Characters never allowed, as the inside of a regular-expression class (`^a-z` forbids all but a-z)."""
    forbidden_parts: str = ""
    """Single characters that are not allowed where they stand, as a regular expression: `^/|/(?=/)`."""
    max_length: int = 0
    """Characters of the escaped name; 0 is no limit."""
    max_bytes: int = 0
    """Bytes of the escaped name in UTF-8; 0 is no limit."""
    empty: str = "_x_"
    """What an empty name becomes."""
    _illegal: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _escaped: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Lone surrogates have no UTF-8 form, so no tracker can store them.
        illegal = "[\ud800-\udfff]" + (f"|[{self.forbidden}]" if self.forbidden else "")
        illegal += f"|{self.forbidden_parts}" if self.forbidden_parts else ""
        # `_` must go when what follows it could be read as an escape, now or once an illegal
        # character after it has become one (which begins with `_`).
        chance = rf"_(?=x[0-9a-f]*(?:_|{illegal}))"
        object.__setattr__(self, "_illegal", re.compile(illegal, re.DOTALL))
        object.__setattr__(self, "_escaped", re.compile(f"{chance}|{illegal}", re.DOTALL))

    def escape(self, name: str) -> str:
        """The name as this tracker can store it."""
        if not name:
            return self.empty
        legal = self._escaped.sub(lambda m: f"_x{ord(m[0]):x}_", name)
        if self.max_length and len(legal) > self.max_length:
            legal = _marked(legal[: self.max_length - _MARK_LENGTH], name)
        if self.max_bytes and len(legal.encode()) > self.max_bytes:
            kept = legal.encode()[: self.max_bytes - _MARK_LENGTH]
            legal = _marked(kept.decode(errors="ignore"), name)
        return legal

    def is_legal(self, name: str) -> bool:
        """Whether the tracker can store the name as it stands."""
        return (
            bool(name)
            and not self._illegal.search(name)
            and not 0 < self.max_length < len(name)
            and not 0 < self.max_bytes < len(name.encode())
        )

    def unescape(self, name: str) -> str:
        """The name that `escape` was given, unless it had to be cut."""
        return "" if name == self.empty else _ESCAPED.sub(lambda m: chr(int(m[1], 16)), name)


def _marked(kept: str, name: str) -> str:
    # An escape that was cut in two would swallow the mark's first underscore.
    whole = _UNFINISHED.sub("", kept)
    return whole + _MARK.format(hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16])


FILE_PATHS: Final = NameRule(
    forbidden=r"\x00-\x1f\x7f\\",
    forbidden_parts=r"^/|/(?=/|\Z)|(?:(?<=/)|^)\.(?=\.?(?:/|\Z))",
    max_bytes=200,
)
"""Names of files, which may have folders and lead out of none."""
