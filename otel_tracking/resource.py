"""Who records, in OpenTelemetry's words."""

from __future__ import annotations

from typing import Final

from opentelemetry.sdk.resources import SERVICE_NAME, Resource

from otel_tracking.records import AttributeValue, Rank

_UNNAMED: Final = "unknown_service"


def resource(project: str, rank: Rank) -> dict[str, AttributeValue]:
    """The attributes of OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME, and the rank's.

    Args:
        project: The service's name where the environment gives none.
        rank: As `training.rank`, `training.world_size`, `training.local_rank`, `training.node_rank`.
    """
    found = Resource.create(rank.attributes()).attributes
    attributes: dict[str, AttributeValue] = {
        key: tuple(str(item) for item in value)
        if isinstance(value, list | tuple)
        else value
        if isinstance(value, str | bool | int | float)
        else str(value)
        for key, value in found.items()
    }
    if str(attributes.get(SERVICE_NAME, _UNNAMED)).startswith(_UNNAMED):
        attributes[SERVICE_NAME] = project
    return attributes
