"""The size of a mixture of experts, as configuration files say it."""

from typing import NamedTuple

from multimodel_server.models.fields import Fields


class ExpertCounts(NamedTuple):
    """How many experts a layer has, and how many of them each token takes."""

    experts: int
    per_token: int


def read_experts(fields: Fields, count_field: str) -> ExpertCounts:
    """Return the numbers of experts; raises `LoadError` (BadConfiguration), naming the file and the field."""
    experts, per_token = fields.count(count_field), fields.count("num_experts_per_tok")
    if per_token > experts:
        raise fields.error("num_experts_per_tok", f"must be at most {count_field}, {experts}")
    return ExpertCounts(experts, per_token)
