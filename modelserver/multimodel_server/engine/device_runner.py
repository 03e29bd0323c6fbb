"""Runs the model on a device that computes while the host plans: steps are launched, and read when they land.

The device chooses the next tokens itself and goes on from them; the host learns them one step later. Requests that need
more than that (`Request.chosen_on_host`) have their logits or hidden states brought to the host, and are served there
by the same code as on the CPU.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from multimodel_server import kernels
from multimodel_server.engine.compilations import watch_compilations
from multimodel_server.engine.device_steps import DeviceSteps, StepSizes
from multimodel_server.engine.graphs import graphs_wanted
from multimodel_server.engine.outcome import Outcome
from multimodel_server.engine.products import choose_linears, device_seconds, room_of
from multimodel_server.engine.request import Request
from multimodel_server.engine.runner import Runner, chosen, embedded
from multimodel_server.engine.sampler import NOT_FINITE
from multimodel_server.engine.scheduler import Chunk
from multimodel_server.engine.warm_up import warm_up_steps
from multimodel_server.models.decoder import Decoder

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OnHost:
    """Rows of a step that the host works on: their logits, or their hidden states if they are embeddings."""

    places: list[int]
    """Of their requests among those that sample."""
    rows: torch.Tensor


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step on its way; its tensors are on the host, and filled when the device has come to `done`."""

    sampled: list[Request]
    id_rows: list[int]
    ids: torch.Tensor
    logits: OnHost
    embeddings: OnHost
    done: torch.cuda.Event | None

    @torch.inference_mode()
    def outcomes(self) -> list[Outcome]:
        """Wait for the end, and return the outcome of each chunk that samples, in order."""
        if self.done is not None:
            self.done.synchronize()
        ids = self.ids.tolist()
        outcomes = [Outcome(ids[row]) if ids[row] >= 0 else Outcome(error=NOT_FINITE) for row in self.id_rows]
        if self.logits.places:
            scored = chosen(self.logits.rows, [self.sampled[place] for place in self.logits.places])
            for place, outcome in zip(self.logits.places, scored, strict=True):
                outcomes[place] = outcome
        if self.embeddings.places:
            for place, outcome in zip(self.embeddings.places, embedded(self.embeddings.rows), strict=True):
                outcomes[place] = outcome
        return outcomes


class DeviceRunner(Runner):
    """A runner that never waits for its device until a step's outcomes are asked for."""

    ahead = 1

    def __init__(self, decoder: Decoder, cache: torch.Tensor, max_seqs: int, max_batched_tokens: int) -> None:
        super().__init__(decoder, cache)
        self._sizes = StepSizes(max_seqs, max_batched_tokens, decoder.config.max_position_embeddings)
        self._steps = DeviceSteps(decoder, self.layers, self.block_size, self._sizes)
        self._id_rows: dict[Request, int] = {}
        """Where the step that was launched last chooses each request's token."""

    def after_each_layer(self, call: Callable[[], None]) -> None:
        """Do nothing: layers are launched, and nothing is to be seen of their being computed."""

    @torch.inference_mode()
    def launch(self, chunks: Sequence[Chunk]) -> LaunchedStep:
        """Begin a step; tokens of it that are not known are those that the step launched last chooses."""
        decodes = len(chunks) <= self._sizes.seqs and all(chunk.decodes for chunk in chunks)
        launch = self._steps.decode if decodes else self._steps.mixed
        hidden, last, id_rows = launch(chunks, self._id_rows)
        self._score_prompts(hidden, chunks)
        sampled = [chunk.request for chunk in chunks if chunk.samples]
        self._id_rows = dict(zip(sampled, id_rows, strict=True))
        ids = self._brought(self._steps.ids[: len(last)])
        logits = self._on_host(last, sampled, id_rows, pools=False)
        embeddings = self._on_host(last, sampled, id_rows, pools=True)
        done = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None
        return LaunchedStep(sampled, id_rows, ids, logits, embeddings, done)

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture decoding, compile all kernels and take the memory of the largest steps: no request waits for it."""
        compiles = self.device.type == "cuda" and kernels.has_triton()
        if compiles:
            choose_linears(self.decoder.matrices(), room_of(self.device), device_seconds)
        began = time.monotonic()
        obstacle = self._obstacle_to_graphs()
        if obstacle is None:
            self._steps.capture()
            log.info("Captured decoding at %d batch sizes in %.1fs", len(self._steps.sizes), time.monotonic() - began)
        else:
            log.info("Decoding is launched kernel by kernel, without CUDA graphs: %s", obstacle)
        # After the capture, which gives back what is not in use: what the largest steps take stays taken.
        for chunks in warm_up_steps(self._sizes, self.block_size):
            self.launch(chunks).outcomes()
        if compiles:
            watch_compilations(self._note_compilation)

    def _obstacle_to_graphs(self) -> str | None:
        """Return why decoding cannot be captured, or None if it can."""
        if self.device.type != "cuda":
            return "the device is no CUDA device"
        if not graphs_wanted():
            return "MULTIMODEL_CUDA_GRAPHS is 0"
        if not kernels.has_triton():
            return "kernels in plain torch have the device wait for the host"
        if self.decoder.waits_for_device:
            return "in a mixture of experts, the host waits for what the device chooses"
        return None

    def _note_compilation(self, kernel: str) -> None:
        self.late_compilations += 1
        log.warning("Requests waited for a kernel that was compiled only now: %s", kernel)

    def _on_host(
        self, hidden: torch.Tensor, sampled: Sequence[Request], id_rows: Sequence[int], *, pools: bool
    ) -> OnHost:
        """Have brought to the host what it needs of the requests that it serves itself."""
        places = [place for place, request in enumerate(sampled) if request.chosen_on_host and request.pools is pools]
        if not places:
            return OnHost(places, hidden[:0])
        rows = torch.tensor([id_rows[place] for place in places], pin_memory=self.device.type == "cuda")
        theirs = hidden.index_select(0, rows.to(self.device, non_blocking=True))
        return OnHost(places, self._brought(theirs if pools else self.decoder.logits(theirs)))

    def _brought(self, rows: torch.Tensor) -> torch.Tensor:
        """Return memory of the host that will hold `rows` when the device has come so far."""
        page = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=self.device.type == "cuda")
        return page.copy_(rows, non_blocking=True)
