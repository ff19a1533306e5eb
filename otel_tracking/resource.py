"""Who records, in OpenTelemetry's words."""

from __future__ import annotations

from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector

from otel_tracking.records import AttributeValue, Rank


def resource(project: str, rank: Rank) -> dict[str, AttributeValue]:
    """The attributes of OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME, and the rank's.

    Other detectors that OpenTelemetry may be told to use ask the network, which training must not wait for.

    Args:
        project: The service's name where the environment gives none.
        rank: As `training.rank`, `training.world_size`, `training.local_rank`, `training.node_rank`.
    """
    given = OTELResourceDetector().detect().attributes
    named: dict[str, AttributeValue] = {key: str(value) for key, value in given.items()}
    return {SERVICE_NAME: project, **named, **rank.attributes()}
