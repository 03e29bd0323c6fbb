"""One level-triggered pass over one MultiModel: observe, plan, apply, tell."""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from pydantic import ValidationError

from multimodel_api.manifest import MultiModel
from multimodel_api.status import MultiModelStatus
from multimodel_operator import events, plan, resources, status
from multimodel_operator.cluster import Cluster
from multimodel_operator.errors import RefusedError
from multimodel_operator.objects import Key, Object, Observed
from multimodel_operator.plan import Step
from multimodel_operator.resources import Owner
from multimodel_operator.settings import Images
from multimodel_operator.status import Refusals

logger = logging.getLogger(__name__)


class Reconciler:
    """Brings MultiModels and their children in line, one at a time, from nothing but what it sees."""

    def __init__(self, cluster: Cluster, images: Images, clock: Callable[[], datetime] | None = None) -> None:
        self._cluster = cluster
        self._images = images
        self._clock = clock or (lambda: datetime.now(UTC))

    async def reconcile(self, key: Key) -> None:
        """Do all that is due for one MultiModel; a second pass right after the first writes nothing.

        Raises UnavailableError, or RefusedError where not even the status can be written.
        """
        observed = await self._cluster.observe(key)
        if observed is None or "deletionTimestamp" in observed.multimodel["metadata"]:
            return  # the garbage collector follows the owner references
        previous = status.previous_status(observed.multimodel)
        now = self._clock()
        try:
            spec = MultiModel.model_validate(observed.multimodel).spec
        except ValidationError as error:
            current = status.invalid_status(observed.multimodel, _first_problem(error), previous, _rfc3339(now))
        else:
            owner = Owner(key, observed.multimodel["metadata"]["uid"])
            steps = plan.make_plan(resources.children(owner, spec, self._images), observed)
            observed, refusals = await self._take(key, steps, observed)
            current = status.current_status(observed, spec, refusals, previous, _rfc3339(now))
        await self._tell(key, observed.multimodel, previous, current, now)

    async def _take(self, key: Key, steps: Sequence[Step], observed: Observed) -> tuple[Observed, Refusals]:
        """Take all steps, also those after a refused one, and return what is there afterwards."""
        refusals: dict[str, str] = {}
        for step in steps:
            try:
                live = await self._cluster.take(step)
            except RefusedError as refused:
                logger.warning("%s: %s: refused: %s", key, plan.sentence(step), refused)
                refusals[step.name] = str(refused)
            else:
                logger.info("%s: %s", key, plan.sentence(step))
                observed = observed.replacing(step.kind, step.name, live)
        return observed, refusals

    async def _tell(
        self, key: Key, multimodel: Object, previous: MultiModelStatus, current: MultiModelStatus, now: datetime
    ) -> None:
        if current == previous:
            logger.debug("%s: in line", key)
            return
        for notice in events.notices(previous, current):
            logger.info("%s: %s: %s", key, notice.reason, notice.note)
            try:
                await self._cluster.post_event(events.event(notice, multimodel, _rfc3339(now, "microseconds")))
            except RefusedError as refused:
                logger.warning("%s: no Event for %s: %s", key, notice.reason, refused)
        await self._cluster.write_status(key, current.model_dump(mode="json", by_alias=True, exclude_none=True))


def _rfc3339(time: datetime, precision: str = "seconds") -> str:
    return time.isoformat(timespec=precision).replace("+00:00", "Z")


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
