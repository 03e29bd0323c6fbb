"""Where pods run; a model and the router have the same fields, as a pod has them."""

from typing import Annotated

from pydantic import Field

from multimodel_api.document import Document, FreeForm, ObjectName

LabelKey = Annotated[str, Field(min_length=1, max_length=317)]
LabelValue = Annotated[str, Field(max_length=63)]


class SecretName(Document):
    """A Secret in this namespace."""

    name: ObjectName = Field(description="Name of the Secret.")


class Placement(Document):
    """Which nodes take a pod, and before which others."""

    node_selector: dict[LabelKey, LabelValue] = Field(
        {}, max_length=64, description="Labels that a node must have to run the pods."
    )
    tolerations: list[FreeForm] = Field([], max_length=64, description="Taints that the pods tolerate, as in a pod.")
    affinity: FreeForm | None = Field(None, description="Affinity of the pods, as in a pod.")
    runtime_class_name: ObjectName | None = Field(None, description="RuntimeClass of the pods.")
    priority_class_name: ObjectName | None = Field(None, description="PriorityClass of the pods.")
