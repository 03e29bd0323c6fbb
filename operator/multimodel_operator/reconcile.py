"""One level-triggered pass over one MultiModel: observe, plan, apply, tell."""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from pydantic import ValidationError

from multimodel_api.manifest import MultiModel, MultiModelSpec
from multimodel_api.status import MultiModelStatus
from multimodel_operator import events, plan, recovery, resources, rollout, serving, status, timeline
from multimodel_operator.cache import Cache
from multimodel_operator.cluster import Cluster
from multimodel_operator.errors import RefusedError
from multimodel_operator.events import Notice
from multimodel_operator.fit_check import FitCheck
from multimodel_operator.load_reports import LoadReports
from multimodel_operator.objects import Key, Object, Observed
from multimodel_operator.owned import Owner
from multimodel_operator.plan import Step
from multimodel_operator.settings import Images
from multimodel_operator.status import Findings, Refusals
from multimodel_operator.timeline import Reports

logger = logging.getLogger(__name__)


class Reconciler:
    """Brings MultiModels and their children in line, one at a time, from nothing but what it sees."""

    def __init__(
        self,
        cache: Cache,
        cluster: Cluster,
        images: Images,
        load_reports: LoadReports,
        fit_check: FitCheck,
        look_again: Callable[[Key, float], None],
        clock: Callable[[], datetime] | None = None,
        *,
        require_api_keys: bool = False,
        metrics_namespaces: Sequence[str] = (),
    ) -> None:
        self._cache = cache
        self._cluster = cluster
        self._images = images
        self._load_reports = load_reports
        self._fit_check = fit_check
        self._look_again = look_again
        self._require_api_keys = require_api_keys
        self._metrics_namespaces = metrics_namespaces
        self._clock = clock or (lambda: datetime.now(UTC))

    async def reconcile(self, key: Key) -> None:
        """Do all that is due for one MultiModel; a second pass right after the first writes nothing.

        Raises UnavailableError, NotLeadingError, or RefusedError where not even the status can be written.
        """
        observed = self._cache.observe(key)
        if observed is None or "deletionTimestamp" in observed.multimodel["metadata"]:
            return  # the garbage collector follows the owner references
        previous = status.previous_status(observed.multimodel)
        now = self._clock()
        try:
            spec = MultiModel.model_validate(observed.multimodel).spec
        except ValidationError as error:
            current = status.invalid_status(observed.multimodel, _first_problem(error), previous, _rfc3339(now))
        else:
            observed, findings = await self._bring_in_line(key, spec, observed, previous, _rfc3339(now))
            current = status.current_status(observed, spec, findings, previous, _rfc3339(now))
        await self._tell(key, observed.multimodel, previous, current, now)
        await self._replace(key, observed, now)
        if (delay := rollout.seconds_to_next_look(observed.pods, _rfc3339(now))) is not None:
            self._look_again(key, delay)

    async def _bring_in_line(
        self, key: Key, spec: MultiModelSpec, observed: Observed, previous: MultiModelStatus, now: str
    ) -> tuple[Observed, Findings]:
        """Take all steps that are due, and return what is there afterwards and what was found out."""
        served = serving.decide(spec, previous, observed)
        withheld = self._require_api_keys and spec.router.api_keys is None
        wanted = resources.children(
            Owner(key, observed.multimodel["metadata"]["uid"]),
            served.rendered,
            self._images,
            with_router=not withheld,
            metrics_namespaces=self._metrics_namespaces,
        )
        steps = plan.make_plan(rollout.adapted(wanted, observed, now), observed, spared=served.retiring_names)
        observed, refusals = await self._take(key, steps, observed)
        reports = self._reports(key, observed, previous)
        return observed, Findings(served, refusals, reports, self._fit_check.of(key, spec), router_withheld=withheld)

    def _reports(self, key: Key, observed: Observed, previous: MultiModelStatus) -> Reports:
        """Return what servers have told of loads that the status does not know yet."""
        known = ((model.loads, status.pods_of(observed, model.name)) for model in previous.models)
        return self._load_reports.of(key, [run for loads, pods in known for run in timeline.new_runs(loads, pods)])

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

    async def _replace(self, key: Key, observed: Observed, now: datetime) -> None:
        """End the pods that restarts do not cure."""
        for found in recovery.replacements(observed.pods):
            await self._cluster.end_pod(Key(key.namespace, found.pod))
            await self._post(key, observed.multimodel, Notice("Warning", events.POD_REPLACED, found.reason), now)

    async def _tell(
        self, key: Key, multimodel: Object, previous: MultiModelStatus, current: MultiModelStatus, now: datetime
    ) -> None:
        if current == previous:
            logger.debug("%s: in line", key)
            return
        for notice in events.notices(previous, current):
            await self._post(key, multimodel, notice, now)
        for model in status.forgotten_records(multimodel, current):
            await self._cluster.withdraw_records(key, model)
        await self._cluster.write_status(key, current.model_dump(mode="json", by_alias=True, exclude_none=True))

    async def _post(self, key: Key, multimodel: Object, notice: Notice, now: datetime) -> None:
        logger.info("%s: %s: %s", key, notice.reason, notice.note)
        try:
            await self._cluster.post_event(events.event(notice, multimodel, _rfc3339(now, "microseconds")))
        except RefusedError as refused:
            logger.warning("%s: no Event for %s: %s", key, notice.reason, refused)


def _rfc3339(time: datetime, precision: str = "seconds") -> str:
    return time.isoformat(timespec=precision).replace("+00:00", "Z")


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
