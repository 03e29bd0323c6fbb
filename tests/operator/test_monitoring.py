"""Alerts and dashboards ask for metrics that exist, in words that a real Prometheus understands."""

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from multimodel_api.progress import LoadPhase, LoadProgress
from multimodel_router.metrics import Metrics as RouterMetrics
from multimodel_server.metrics import Metrics as ServerMetrics

FILES = Path(__file__).parents[2] / "charts" / "multimodel" / "files"
RULES = FILES / "rules.yaml"
DASHBOARDS = ("serving", "lifecycle", "operator")
SECONDS = 60.0
PARTS = {"routers": {"multimodel": "chat"}, "modelservers": {"multimodel": "chat", "model_name": "a"}, "operator": {}}

QUIET = ("operator_reconcile_errors", "operator_refused_steps")
"""What an operator counts only when something goes wrong."""


def dashboard(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((FILES / "dashboards" / f"{name}.json").read_text())
    return document


def queries(name: str) -> dict[str, str]:
    """Return a dashboard's queries by panel and legend, as Grafana sends them with everything chosen."""
    found = {
        f"{panel['title']}: {target['legendFormat']}": target["expr"]
        for panel in dashboard(name)["panels"]
        for target in panel["targets"]
    }
    for title, query in found.items():
        found[title] = re.sub(r"\$(namespace|multimodel|model)\b", ".*", query).replace("$__rate_interval", "1m")
    return found


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def exercised(metrics: object) -> None:
    """Count something in each metric of an object: once for each label value `a`."""
    for metric in vars(metrics).values():
        if not isinstance(metric, Counter | Gauge | Histogram):
            continue
        open_labels = () if metric._labelvalues else metric._labelnames
        labelled = metric.labels(*["a"] * len(open_labels)) if open_labels else metric
        match labelled:
            case Counter():
                labelled.inc()
            case Gauge():
                labelled.set(1)
            case Histogram():
                labelled.observe(1)


class Parts:
    """What a router and a model server show; each look at it counts one more of everything."""

    def __init__(self) -> None:
        self._router = RouterMetrics()
        self._server = ServerMetrics("org/a")
        seconds = {phase: 1.0 for phase in LoadPhase if phase is not LoadPhase.READY}
        self._server.loaded(LoadProgress(phase=LoadPhase.READY, seconds=seconds))
        self._looks = 0

    def page(self, part: str) -> bytes:
        self._looks += 1
        if part == "routers":
            exercised(self._router)
            return self._router.page()
        exercised(self._server)
        self._server.prefix_lookups.reached(self._looks)
        self._server.prefix_hits.reached(self._looks)
        self._server.preemptions.reached(self._looks)
        return self._server.exposition()


@pytest.fixture(scope="module")
def parts() -> Iterator[str]:
    """The address of pages as routers and model servers show them."""
    shown = Parts()

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = shown.page(self.path.strip("/"))
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def operator_address(operator: Any) -> str:
    return next(word for word in operator.log.split() if word.startswith("http://127.0.0.1:")).removeprefix("http://")


def eventually(what: str, look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := look()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {SECONDS:.0f} s")
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def prometheus(parts: str, operator: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A Prometheus that has read every part more than once."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed; on Debian: apt-get install --no-install-recommends prometheus")
    addresses = {"operator": (operator_address(operator), "/metrics")}
    addresses |= {part: (parts, f"/{part}") for part in PARTS if part != "operator"}
    jobs = [
        {
            "job_name": part,
            "metrics_path": addresses[part][1],
            "static_configs": [
                {"targets": [addresses[part][0]], "labels": {"namespace": "team", "pod": part, **labels}}
            ],
        }
        for part, labels in PARTS.items()
    ]
    folder = tmp_path_factory.mktemp("prometheus")
    configuration = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs, "rule_files": [str(RULES)]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        program,
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False) as client:
            eventually("Prometheus answers", lambda: answers(client) or process.poll() is not None)
            eventually(
                "read twice", lambda: len(value(client, "count_over_time(up[1m]) > 2 and up == 1")) == len(PARTS)
            )
            yield client
    finally:
        process.terminate()
        process.wait(timeout=20)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/status/buildinfo").is_success
    except httpx.TransportError:
        return False


def value(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    response = client.get("/query", params={"query": query})
    assert response.is_success, f"{query}: {response.text}"
    result: list[dict[str, Any]] = response.json()["data"]["result"]
    return result


@pytest.mark.control_plane
def test_every_metric_that_is_asked_for_exists(operator: Any, parts: str) -> None:
    known: set[str] = set()
    for url in (f"{operator_address(operator)}/metrics", f"{parts}/routers", f"{parts}/modelservers"):
        page = httpx.get(f"http://{url}", trust_env=False).text
        for family in text_string_to_metric_families(page):
            kinds = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",)}
            known |= {family.name + suffix for suffix in kinds.get(family.type, ("",))}
    asked = " ".join(
        [*(query for name in DASHBOARDS for query in queries(name).values()), *(a["expr"] for a in alerts())]
    )
    assert set(re.findall(r"\bmultimodel_\w+", asked)) - known == set()


@pytest.mark.control_plane
@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_panel_shows_something(prometheus: httpx.Client, namespace: Any, model: Any, name: str) -> None:
    namespace.multimodel(model("a"))
    loud = {query for query in queries(name).values() if not any(quiet in query for quiet in QUIET)}
    eventually("every panel shows something", lambda: all(value(prometheus, query) for query in loud))
    for query in queries(name).values():
        value(prometheus, query)


@pytest.mark.control_plane
def test_prometheus_evaluates_the_alerts(prometheus: httpx.Client) -> None:
    def evaluated() -> bool:
        groups = prometheus.get("/rules").json()["data"]["groups"]
        health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
        return health.keys() == {alert["alert"] for alert in alerts()} and set(health.values()) == {"ok"}

    eventually("every alert is evaluated", evaluated)


def test_dashboards_are_unlike_and_choose_their_source() -> None:
    documents = [dashboard(name) for name in DASHBOARDS]
    assert len({document["uid"] for document in documents}) == len(documents)
    assert {path.stem for path in (FILES / "dashboards").iterdir()} == set(DASHBOARDS)
    for document in documents:
        assert {target["datasource"]["uid"] for panel in document["panels"] for target in panel["targets"]} == {
            "${datasource}"
        }
        assert [panel["title"] for panel in document["panels"] if not panel["description"]] == []


SERIES = 'namespace="team", multimodel="chat", model="a"'
FIRING: dict[str, dict[str, str]] = {
    "MultiModelEveryCallFails": {f"multimodel_router_failures_in_a_row{{{SERIES}}}": "5+1x60"},
    "MultiModelLoadStuck": {
        f"multimodel_router_requests_waiting{{{SERIES}}}": "1x60",
        f"multimodel_router_ready_endpoints{{{SERIES}}}": "0x60",
    },
    "MultiModelWaitingLong": {
        f'multimodel_router_wait_seconds_bucket{{{SERIES}, le="120"}}': "0x60",
        f'multimodel_router_wait_seconds_bucket{{{SERIES}, le="300"}}': "0+10x60",
        f'multimodel_router_wait_seconds_bucket{{{SERIES}, le="+Inf"}}': "0+10x60",
    },
    "MultiModelRequestsRefused": {f"multimodel_router_requests_refused_total{{{SERIES}}}": "0+1x60"},
    "MultiModelEndpointsEjected": {f'multimodel_router_ejections_total{{{SERIES}, cause="broken"}}': "0+1x60"},
    "MultiModelEngineReboots": {f"multimodel_engine_reboots_total{{{SERIES}}}": "0+1x60"},
    "MultiModelOperatorAbsent": {'multimodel_operator_leader{pod="p"}': "0x60"},
    "MultiModelOperatorStuck": {'multimodel_operator_work_age_seconds{pod="p"}': "0+60x60"},
    "MultiModelOperatorFails": {'multimodel_operator_reconcile_errors_total{cause="c"}': "0+5x60"},
    "MultiModelDegraded": {'multimodel_operator_multimodels{state="degraded"}': "1x60"},
}
CALM = {series: "0x60" for needed in FIRING.values() for series in needed} | {
    'multimodel_operator_leader{pod="p"}': "1x60"
}


def promtool(*arguments: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed; on Debian: apt-get install --no-install-recommends prometheus")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_no_fault_in_the_rules() -> None:
    promtool("check", "rules", str(RULES))


@pytest.mark.parametrize("alert", [alert["alert"] for alert in alerts()])
def test_an_alert_fires_when_it_should_and_rests_when_all_is_well(alert: str, tmp_path: Path) -> None:
    def judged(series: dict[str, str], *, fires: bool) -> dict[str, Any]:
        count = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})'
        samples = [{"labels": "{}", "value": 1}] if fires else []
        return {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [{"expr": count, "eval_time": "50m", "exp_samples": samples}],
        }

    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [judged(FIRING[alert], fires=True), judged(CALM, fires=False)],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(document))
    promtool("test", "rules", str(tmp_path / "test.yaml"))
