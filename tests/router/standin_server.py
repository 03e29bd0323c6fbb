"""A scripted stand-in for a model server, run as a process: it fails on demand, which the real one rarely does.

It takes the model server's command line. The environment variable STANDIN holds a JSON object:
  load_gate    a file: the server loads until it exists
  load_seconds how long a load takes
  loaded       a file: written when the load is over
  fail         a load failure {reason, message}: written to the failure file, then exit 1
  fail_unless  a file: `fail` counts only while it does not exist
  crash        an exit code to end with at once
A request's JSON body may hold an object `standin`:
  fault        break_first (no byte), break_mid (after the first event), die_mid (the whole process, then),
               break_end (with all said, but without HTTP's end), unavailable (503),
               stranger (the answer of another model),
               wedge (503, and from then on neither ready nor live)
  after        break_mid and die_mid happen after these words instead, each once on the way
  unmarked     true: they happen before the marker of the word
  no_resume    true: going on is refused with a 400
  resumable    true: a stream has markers, each word being a token, and can be gone on with
  once         a file: the fault happens only while it does not exist; it makes it
  gate         a file: the answer waits for it after its first event
  pause        seconds between two events
  begun        a file made when the request has come
  cancelled    a file made when the client leaves before the answer's end
"""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from urllib.parse import quote

OPTIONS = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
SCRIPT = json.loads(os.environ.get("STANDIN", "{}"))
SERVED = {
    "model": OPTIONS.get("alias") or OPTIONS["model"],
    "canonical_id": OPTIONS["model"],
    "boot": str(os.getpid()),
}
STATE = f"state of {SERVED['model']}"
TICK = 0.01


class StandIn:
    def __init__(self):
        self.loaded = False
        self.draining = False
        self.wedged = False
        self.running = 0
        self.idle = asyncio.Event()

    async def load(self):
        if "crash" in SCRIPT:
            os._exit(SCRIPT["crash"])
        await appears(SCRIPT.get("load_gate"))
        await asyncio.sleep(SCRIPT.get("load_seconds", 0))
        if "fail" in SCRIPT and not there(SCRIPT.get("fail_unless", "/nonexistent")):
            write(OPTIONS["failure-file"], json.dumps(SCRIPT["fail"]))
            os._exit(1)
        self.loaded = True
        if "loaded" in SCRIPT:
            write(SCRIPT["loaded"], "")

    async def serve(self, reader, writer):
        try:
            while request := await read_request(reader):
                if not await self.answer(*request, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the server ends
        finally:
            writer.close()

    async def answer(self, path, headers, body, reader, writer):
        """Answer one request; return whether the connection may be used again."""
        ready = self.loaded and not self.draining and not self.wedged
        if path == "/health/live":
            return reply(writer, 503 if self.wedged else 200, {})
        if path == "/health/ready":
            return reply(writer, 200 if ready else 503, SERVED)
        if path == "/health/progress":
            phase = "ready" if ready else "reading_weights"
            return reply(writer, 200, {"phase": phase, "bytes_done": 1, "bytes_total": 2, "seconds": {"starting": 0.1}})
        wanted = json.loads(body)
        fault = wanted.get("standin", {})
        happens = fault.get("fault") if first_time(fault.get("once")) else None
        if happens == "break_first":
            writer.transport.abort()
            return False
        self.wedged = self.wedged or happens == "wedge"
        if not ready or happens in ("unavailable", "wedge"):
            return reply(writer, 503, {"error": {"message": "not ready", "type": "server_error"}}, retry_after="1")
        if "begun" in fault:
            write(fault["begun"], "")
        self.running += 1
        self.idle.clear()
        try:
            return await self.complete(path, headers, wanted, happens, fault, reader, writer)
        finally:
            self.running -= 1
            if not self.running:
                self.idle.set()

    async def complete(self, path, headers, wanted, happens, fault, reader, writer):
        words = f"You said: {wanted['messages'][-1]['content']}".split(" ") if "messages" in wanted else ["42"]
        base = {"id": "chatcmpl-1", "created": int(time.time()), "model": SERVED["model"]}
        made_by = "somebody/else" if happens == "stranger" else SERVED["model"]
        more = {"x-multimodel-model": quote(made_by, safe="")}
        more |= {"x-seen-request-id": headers.get("x-request-id", ""), "x-seen-path": path, "server": "stand-in"}
        if not wanted.get("stream"):
            await appears(fault.get("gate"), reader, fault.get("cancelled"))
            message = {"role": "assistant", "content": " ".join(words)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": len(words), "total_tokens": 1 + len(words)}
            whole = base | {"object": "chat.completion", "choices": [choice], "usage": usage}
            return reply(writer, 200, whole, **more)
        marked = fault.get("resumable") and "x-multimodel-resumable" in headers
        resume = wanted.get("multimodel_resume", {"state": STATE, "token_ids": []}) if marked else {"token_ids": []}
        done = len(resume["token_ids"])
        wrong = marked and resume != {"state": STATE, "token_ids": tokens_of(words)[:done]}
        if wrong or (done and fault.get("no_resume")):
            return reply(writer, 400, {"error": {"message": f"cannot go on with {resume}", "type": "server_error"}})
        more |= {"x-multimodel-resume": STATE} if marked else {}
        base |= {"object": "chat.completion.chunk", "system_fingerprint": SERVED["boot"]}
        begin(writer, 200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"} | more)
        breaks = [after for after in fault.get("after", [1]) if after > done] if happens in BREAKS else []
        for number, word in list(enumerate(words, 1))[done:]:
            delta = {"content": word if number == 1 else f" {word}"}
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            event(writer, json.dumps(base | {"choices": [choice]}))
            if marked and not (number in breaks and fault.get("unmarked")):
                piece(writer, b": resume %d\n\n" % tokens_of(words)[number - 1])
            await writer.drain()
            await asyncio.sleep(fault.get("pause", 0))
            if number in breaks:
                return await BREAKS[happens](writer)
            if number == 1:
                await appears(fault.get("gate"), reader, fault.get("cancelled"))
        event(writer, "[DONE]")
        if marked:
            piece(writer, b": resume end\n\n")
        if happens == "break_end":
            await writer.drain()
            return await break_off(writer)
        writer.write(b"0\r\n\r\n")
        return True


def tokens_of(words):
    return [100 + number for number, _ in enumerate(words)]


async def break_off(writer):
    writer.transport.abort()
    return False


async def die(writer):
    while writer.transport.get_write_buffer_size():  # noqa: ASYNC110  (of what another process reads)
        await asyncio.sleep(TICK)
    os.kill(os.getpid(), signal.SIGKILL)


BREAKS = {"break_mid": break_off, "die_mid": die}


async def appears(file, reader=None, cancelled=None):
    """Wait for a file; when the client leaves meanwhile, say so and give up."""
    while file and not there(file):
        if reader is not None and reader.at_eof():
            if cancelled:
                write(cancelled, "")
            raise ConnectionError("the client left")
        await asyncio.sleep(TICK)


def there(file):
    return Path(file).exists()


def write(file, text):
    Path(file).write_text(text)


def first_time(file):
    if file is None:
        return True
    try:
        Path(file).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


async def read_request(reader):
    line = await reader.readline()
    if not line:
        return None
    path = line.decode().split(" ", 2)[1]
    headers = {}
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, value = line.decode().split(":", 1)
        headers[name.lower()] = value.strip()
    return path, headers, await reader.readexactly(int(headers.get("content-length", 0)))


def begin(writer, status, headers):
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers.items())]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())


def reply(writer, status, document, retry_after=None, **headers):
    body = json.dumps(document).encode()
    more = {"retry-after": retry_after} if retry_after else {}
    begin(writer, status, {"content-type": "application/json", "content-length": len(body)} | more | headers)
    writer.write(body)
    return True


def event(writer, data):
    piece(writer, f"data: {data}\n\n".encode())


def piece(writer, data):
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


async def main():
    standin = StandIn()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = await asyncio.start_server(standin.serve, OPTIONS["host"], int(OPTIONS["port"]))
    loading = asyncio.create_task(standin.load())
    await stop.wait()
    standin.draining = True
    if standin.running:
        await standin.idle.wait()
    loading.cancel()
    server.close()


asyncio.run(main())
