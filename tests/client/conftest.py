"""A stand-in endpoint on loopback: the routes that the client uses, with states that a test can set."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from multimodel_api import errors
from multimodel_api.lifecycle import HTTP_STATUS, LifecycleReply, ModelCard, ModelList
from multimodel_api.state import ModelState

AFTER = {"unload": ModelState.UNLOADED, "reload": ModelState.LOADED}


class Endpoint(ThreadingHTTPServer):
    """Two models, `math` (the default) and `org/words`; chat answers with the last message, word by word."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cards = {
            model_id: ModelCard(id=model_id, created=1, status=ModelState.LOADED, canonical_id=f"models/{model_id}")
            for model_id in ("math", "org/words")
        }
        self.bodies = []
        self.keys_shown = []
        self.chat_error = None
        self.breaks_mid_stream = False
        self.pause = threading.Event()  # a stream stops after its first word until this is set
        self.pause.set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def set(self, model_id, **fields):
        self.cards[model_id] = self.cards[model_id].model_copy(update=fields)

    def find(self, model_id):
        return self.cards.get("math" if model_id == "default" else model_id)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def parse_request(self):
        parsed = super().parse_request()
        if parsed:
            self.server.keys_shown.append(self.headers["authorization"])
        return parsed

    def do_GET(self):
        if self.path == "/v1/models":
            return self.reply(200, ModelList(data=[ModelCard(id="default", created=1), *self.server.cards.values()]))
        model_id = unquote(self.path.removeprefix("/v1/models/"))
        card = self.server.find(model_id)
        return self.reply(200, card) if card else self.fail(errors.model_not_found(model_id, self.server.cards))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        if self.path == "/v1/chat/completions":
            return self.chat(body)
        model_id, action = body["model_id"], self.path.rsplit("/", 1)[1]
        card = self.server.find(model_id)
        if card and action in AFTER and card.status is not ModelState.INTERNAL_ERROR:
            self.server.set(card.id, status=AFTER[action])
        state = self.server.cards[card.id].status if card else ModelState.NOT_FOUND
        error = str(card.failure) if card and card.failure else None
        return self.reply(HTTP_STATUS[state], LifecycleReply(model_id=model_id, status=state, error=error))

    def chat(self, body):
        if self.server.chat_error:
            return self.fail(self.server.chat_error)
        text = f"You said: {body['messages'][-1]['content']}"
        if not body.get("stream"):
            message = {"role": "assistant", "content": text}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            return self.send(
                200, json.dumps({"id": "c", "created": 1, "model": "math", "choices": choices, "usage": usage})
            )
        events = [
            chunk({"role": "assistant", "content": ""}),
            *(chunk({"content": word}) for word in split_words(text)),
        ]
        if self.server.breaks_mid_stream:
            broken = errors.server_error("The engine died.", code="EngineCrashed").body.model_dump_json()
            return self.send_events([*events[:3], broken])
        return self.send_events([*events, chunk({}, finish_reason="stop"), "[DONE]"])

    def send_events(self, events):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for number, event in enumerate(events):
            self.wfile.write(f": a comment\ndata: {event}\n\n".encode())
            self.wfile.flush()
            if number == 1:
                self.server.pause.wait(30)

    def reply(self, status, document):
        self.send(status, document.model_dump_json(exclude_none=True))

    def fail(self, error):
        self.reply(error.status, error.body)

    def send(self, status, text, content_type="application/json"):
        payload = text.encode()
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)


def split_words(text):
    return [word if index == 0 else f" {word}" for index, word in enumerate(text.split(" "))]


def chunk(delta, finish_reason=None):
    choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    return json.dumps({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "math", "choices": choices})


@pytest.fixture
def endpoint():
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
