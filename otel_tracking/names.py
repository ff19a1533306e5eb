"""Names that a tracker accepts, made from any name, never two from one.

The rule is data that a tracker declares; this module is the only place that escapes.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

_ESCAPED = re.compile(r"_x([0-9a-f]+)_")


@dataclass(frozen=True, slots=True)
class NameRule:
    """Which names a tracker takes as they are.

    A character that is not allowed becomes `_x<hex>_`; an underscore that would start such a
    sequence by chance is escaped too, so that `unescape` gives every name back. A name over
    the limit is cut and ends in `~` and 16 hex digits of its SHA-256.
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
    _pattern: re.Pattern[str] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        # Lone surrogates have no UTF-8 form, so no tracker can store them.
        forbidden = "[\ud800-\udfff]" + (f"|[{self.forbidden}]" if self.forbidden else "")
        parts = f"|{self.forbidden_parts}" if self.forbidden_parts else ""
        # `_` must go when what follows it could be read as an escape, now or once a forbidden
        # character after it has become one (which begins with `_`).
        chance = rf"_(?=x[0-9a-f]*(?:_|{forbidden}{parts}))"
        object.__setattr__(self, "_pattern", re.compile(rf"{chance}|{forbidden}{parts}", re.DOTALL))

    def escape(self, name: str) -> str:
        """The name as this tracker can store it."""
        if not name:
            return self.empty
        assert self._pattern is not None
        legal = self._pattern.sub(lambda m: f"_x{ord(m[0]):x}_", name)
        if self.max_length and len(legal) > self.max_length:
            legal = f"{legal[: self.max_length - 17]}~{_digest(name)}"
        if self.max_bytes and len(legal.encode()) > self.max_bytes:
            kept = legal.encode()[: self.max_bytes - 17].decode(errors="ignore")
            legal = f"{kept}~{_digest(name)}"
        return legal

    def unescape(self, name: str) -> str:
        """The name that `escape` was given, unless it had to be cut."""
        return "" if name == self.empty else _ESCAPED.sub(lambda m: chr(int(m[1], 16)), name)


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
