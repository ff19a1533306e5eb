"""A global provider that stands in until the user sets one, and leads to that one from then on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

ProviderT = TypeVar("ProviderT")
ToolT = TypeVar("ToolT")


class StandIn(Generic[ProviderT]):
    """What our providers have in common.

    Attributes:
        provider: The SDK's that does the work: our own, then the user's.
    """

    def __init__(self, own: ProviderT) -> None:
        self.provider = own
        self._attached = False

    def attach(self, provider: ProviderT) -> bool:
        """Let a provider of the user's do the work from now on.

        Returns:
            False, and nothing is done, if another one does already.
        """
        if self._attached:
            return self.provider is provider
        self._attached = True
        self.provider = provider
        return True

    def __getattr__(self, name: str) -> Any:
        """What this provider does not have is that one's: `add_span_processor`, `shutdown`, ..."""
        return getattr(self.__dict__["provider"], name)


class Current(Generic[ProviderT, ToolT]):
    """A tracer or a logger of the provider that does the work, also after that has changed.

    Args:
        owner: Whose provider that is.
        get: Gets it of a provider.
    """

    __slots__ = ("_get", "_owner", "_provider", "_tool")

    def __init__(self, owner: StandIn[ProviderT], get: Callable[[ProviderT], ToolT]) -> None:
        self._owner = owner
        self._get = get
        self._provider: ProviderT | None = None

    def get(self) -> ToolT:
        """It."""
        provider = self._owner.provider
        if provider is not self._provider:
            self._tool = self._get(provider)
            self._provider = provider
        return self._tool
