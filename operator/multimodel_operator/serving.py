"""Decides under which ids models are served while pods catch up with the spec; pure.

An id moves to another model, and a model's id to another source, only when the new one can answer: until then the old
one serves on. So a spec that turns out bad takes nothing away, and taking it back is one edit.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from multimodel_api import names, pod_status
from multimodel_api.manifest import MultiModelSpec
from multimodel_api.names import Component
from multimodel_api.served import Identity, identity_of, published, with_identities
from multimodel_api.status import ModelStatus, MultiModelStatus
from multimodel_operator import objects
from multimodel_operator.objects import Object, Observed, label_of, name_of


@dataclass(frozen=True)
class Serving:
    """Who is served under which id, and what has to stay as it is for that."""

    identities: Mapping[str, Identity]
    default: str
    rendered: MultiModelSpec
    """The spec to make objects from: a model whose id another one waits for is not changed before."""
    retiring: tuple[ModelStatus, ...] = ()
    """Models that have left the spec and serve until another one can take their id."""

    @property
    def retiring_names(self) -> set[str]:
        """The names of the models whose objects stay though the spec does not list them."""
        return {model.name for model in self.retiring}


def decide(spec: MultiModelSpec, previous: MultiModelStatus, observed: Observed) -> Serving:
    """Return who is to be served under which id from now on, given the status that says who was."""
    world = _World(spec, previous, observed)
    moved = world.moved()
    identities = {name: world.wanted[name] if name in moved else world.now[name] for name in world.wanted}
    held = {name: identities[name] for name in world.wanted if name not in moved and world.must_stay(name)}
    awaited = {world.wanted[name].id for name in world.wanted if name not in moved}
    retiring = tuple(model for model in world.left if model.id in awaited and world.serves(model.name))
    served = {name: identity.id for name, identity in identities.items()} | {left.name: left.id for left in retiring}
    return Serving(identities, world.default(served), with_identities(spec, held), retiring)


class _World:
    """What the decision is made from."""

    def __init__(self, spec: MultiModelSpec, previous: MultiModelStatus, observed: Observed) -> None:
        self._spec = spec
        self._observed = observed
        self._default = previous.default_model
        known = published(previous)
        self.wanted = {model.name: identity_of(model) for model in spec.models}
        self.left = [model for model in previous.models if model.name not in self.wanted]
        self._holders = {identity.id: name for name, identity in known.items()}
        self.now = {name: known.get(name) or self._first(wanted) for name, wanted in self.wanted.items()}

    def _first(self, wanted: Identity) -> Identity:
        """Return a new model's identity: its id may still be another's."""
        return Identity(wanted.canonical_id, wanted.canonical_id) if wanted.id in self._holders else wanted

    def moved(self) -> set[str]:
        """Return the models that are served as the spec says from now on.

        Who takes an id makes its holder give it up, who then may take another's.
        """
        moved = {name for name in self.wanted if self._takes_over(name)}
        while True:
            taken = {self.wanted[name].id for name in moved}
            ousted = {name for name in self.wanted if name not in moved and self.now[name].id in taken}
            if not ousted:
                return moved
            moved |= ousted

    def must_stay(self, name: str) -> bool:
        """Whether a model serves an id that another waits for, and waits for none itself."""
        others = {wanted.id for other, wanted in self.wanted.items() if other != name}
        return self.now[name].id in others and self._holder(name) is None

    def serves(self, name: str) -> bool:
        """Whether any replica of a model can answer."""
        return bool(self._ready(name))

    def default(self, served: Mapping[str, str]) -> str:
        """Return the default model's id, of all ids by model: the one until now, while the one to come loads."""
        coming = self._spec.default.name
        now = next((name for name, model_id in served.items() if model_id == self._default), coming)
        waits = self.serves(now) and self._desired(coming) != 0 and not self.serves(coming)
        return served[now if waits else coming]

    def _takes_over(self, name: str) -> bool:
        """Whether a model is to be served as the spec says: it can be, or nothing is served otherwise.

        Nobody loads an unloaded model ahead of a request, so it does not have to be warm.
        """
        now, wanted = self.now[name], self.wanted[name]
        if now == wanted or self._desired(name) == 0:
            return True
        ready = self._ready(name)
        holder = self._holder(name)
        least = max(ready.count(now), 1 if holder is not None and self.serves(holder) else 0)
        return ready.count(wanted) >= least

    def _holder(self, name: str) -> str | None:
        """Return the other model that has the id which a model wants."""
        holder = self._holders.get(self.wanted[name].id)
        return holder if holder != name else None

    def _desired(self, name: str) -> int | None:
        deployment = self._observed.child(
            objects.DEPLOYMENT, names.model_object_name(name_of(self._observed.multimodel), name)
        )
        return None if deployment is None else deployment["spec"].get("replicas", 1)

    def _ready(self, name: str) -> list[Identity | None]:
        """Return what each replica that can answer serves."""
        pods = self._observed.pods
        return [served_by(pod) for pod in pods if label_of(pod, names.LABEL_MODEL) == name and pod_status.is_ready(pod)]


def served_by(pod: Object) -> Identity | None:
    """Return the identity that a pod's model server was started with."""
    containers = pod.get("spec", {}).get("containers", [])
    arguments: list[str] = next((c.get("args", []) for c in containers if c["name"] == Component.MODEL_SERVER), [])
    given = {option: value for option, _, value in (argument.partition("=") for argument in arguments)}
    if "--model" not in given:
        return None
    canonical_id = given["--model"].replace("$$", "$")
    return Identity(given["--alias"].replace("$$", "$") if "--alias" in given else canonical_id, canonical_id)
