"""The vLLM engine behind `contracts.Generator`: in this process, stepped by its owner, token ids in and out.

The engine runs inside of the caller's thread, so nothing happens between two calls of `step`: that is where
weights are swapped, requests taken back and answers cut, without any pausing protocol.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from penstock.rollout.ahead import Ahead
from penstock.rollout.config import KEEP_NOTHING, EngineSection, Keep
from penstock.rollout.errors import PromptTooLong
from penstock.rollout.probe import judge, judge_change
from penstock.rollout.recorder import Recorder, Track
from penstock.rollout.vllm_calls import Calls
from penstock.rollout.vllm_setup import start_engine
from penstock.services.contracts import PenstockError, Request, SwapReport, WeightReceiver, WeightsError
from penstock.services.trajectory import Completion, Finish, Floats, Sampling, Unfinished
from penstock.services.versions import Version
from penstock.services.weights.engine_transfer import Backend, EngineTransferReceiver
from penstock.services.weights.files import WeightsMissing
from penstock.services.weights.manifest import Manifest, probe_tokens

if TYPE_CHECKING:
    from vllm import SamplingParams


class Decoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str: ...


class VllmGenerator(Recorder):
    """Many completions at a time in one engine. One thread owns it; no method may be called from another."""

    def __init__(
        self,
        model: str,
        section: EngineSection,
        *,
        tokenizer: Decoder,
        end_tokens: Sequence[int],
        receiver: WeightReceiver | None = None,
        name: str = "engine",
        seed: int = 0,
        loaded: Version | None = None,
        transfer: Backend | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        keep: Keep = KEEP_NOTHING,
    ) -> None:
        """Start the engine with the weights in the directory or hub id `model`; this takes seconds to minutes.

        end_tokens: ids that end every answer. receiver: where `swap` gets weights from. loaded: the version that
        `model` holds; without one, the first thing to do is a swap. transfer: how an EngineTransferReceiver's weights
        come. revision, trust_remote_code: of a model on the hub. keep: what completions hold beside tokens and
        log-probs. Raises EngineFailed.
        """
        super().__init__(keep, section.max_model_len)
        self.name = name
        self._section = section
        self._tokenizer = tokenizer
        self._end_tokens = tuple(end_tokens)
        self._receiver = receiver
        self._version = loaded
        self._active = 0  # how many of the tracks the engine knows
        self._done: list[tuple[str, Completion]] = []
        self._asides = 0  # probes and parity requests made so far
        self._probed: tuple[Manifest, list[float]] | None = None
        self._ahead: Ahead | None = None
        source = {"model": model, "revision": revision, "trust_remote_code": trust_remote_code}
        start = partial(start_engine, source, section, seed, keep, transfer)
        self._calls = Calls(name, start, section.swap_deadline)
        self._masks, self._routes = self._calls.started.masks, self._calls.started.routes
        self._has_experts = bool(self._calls.rpc("expert_layers", {})[0])
        import vllm

        self._vllm = vllm
        self._describe = f"vllm {vllm.__version__} {vllm.platforms.current_platform.device_type} {section.dtype}"
        self._warm_up()

    def _warm_up(self) -> None:
        """Have the engine compile now what it compiles at its first request, for seconds: otherwise the first swap
        would wait for it, whose deadline is for weights."""
        self._aside(probe_tokens(self._calls.vocabulary)[: self._section.max_model_len - 1], "first request")

    # --- requests ---------------------------------------------------------------------------------

    @property
    def version(self) -> Version:
        """The version of the weights in use. Raises WeightsError before the first swap."""
        if self._version is None:
            raise WeightsError(f"{self.name} has no published weights yet: the first call must be swap(version)")
        return self._version

    def submit(self, request: Request) -> None:
        """Start a completion, or go on with one. Raises PromptTooLong when there is no room for one more token."""
        track = self._begin(request)
        if self._room(track) <= 0:  # handed over at the very end of its budget
            self._done.append((request.key, self._complete(track, "length")))
        else:
            self._tracks[request.key] = track

    def step(self) -> list[tuple[str, Completion]]:
        """One engine step; the requests that ended in it. Raises EngineFailed, also where there is nothing to do."""
        self._calls.check()
        self._admit()
        for output in self._engine_step() if self._active else []:
            self._record(output)
        done, self._done = self._done, []
        return done

    def take_back(self, keys: Sequence[str]) -> dict[str, Unfinished]:
        """Stop these requests and hand out what they have so far; works also when the engine has failed."""
        return {key: track.unfinished() for key, track in self._abort(keys).items()}

    def cut(self, keys: Sequence[str]) -> list[tuple[str, Completion]]:
        """End these requests now with finish `stale`."""
        return [(key, self._complete(track, "stale")) for key, track in self._abort(keys).items()]

    def close(self) -> None:
        """Stop the engine and free its memory."""
        self._tracks.clear()
        self._forget_ahead()
        self._calls.close()

    def _admit(self) -> None:
        """Hand waiting requests to the engine while it has slots.

        Those that wait here start with the weights of the moment they start, and never stand before a probe.
        """
        if self._active >= self._section.max_num_seqs or self._active == len(self._tracks):
            return
        for key, track in self._tracks.items():
            if self._active >= self._section.max_num_seqs:
                return
            if not track.admitted:
                tokens = track.request.prompt.tokens.tolist() + track.tokens
                # The salt keeps a prefix that older weights computed from being used for this request.
                self._calls.add(key, tokens, self._params(track), salt=str(self.version))
                track.admitted = True
                self._active += 1

    def _params(self, track: Track) -> SamplingParams:
        sampling: Sampling = track.request.sampling
        values = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": self._room(track),
            "stop_token_ids": [*self._end_tokens, *sampling.stop_token_ids],
            "ignore_eos": True,  # all ends are in the list above
            "logprobs": 0,  # of the sampled token only
            "flat_logprobs": True,
            "detokenize": False,
            "output_kind": self._vllm.sampling_params.RequestOutputKind.DELTA,
        }
        if self._masks is not None:
            values |= self._masks.params(sampling, self._calls.vocabulary)
        return self._vllm.SamplingParams(**values)

    def _record(self, output: Any) -> None:
        track = self._tracks.get(output.request_id)
        if track is None:
            return  # aborted in this very step
        answer = output.outputs[0]
        logprobs = [answer.logprobs.logprobs[start] for start in answer.logprobs.start_indices]
        kept = []
        if self._masks is not None and track.kept is not None:
            kept = self._masks.read(self._calls.started.engine, output)
        track.add(answer.token_ids, logprobs, self.version, kept)
        if output.finished:
            if answer.finish_reason not in ("stop", "length"):
                raise self._calls.fail("step", f"request {output.request_id} ended with {answer.finish_reason!r}")
            self._hear_of_end(output.request_id, track, answer)
            del self._tracks[output.request_id]
            self._active -= 1
            self._done.append((output.request_id, self._complete(track, answer.finish_reason)))

    def _complete(self, track: Track, finish: Finish) -> Completion:
        text = self._tokenizer.decode(track.tokens, skip_special_tokens=True)
        return track.completion(finish, text, self.name, self._describe)

    def _abort(self, keys: Sequence[str]) -> dict[str, Track]:
        tracks = {key: self._tracks.pop(key) for key in keys}
        admitted = [key for key, track in tracks.items() if track.admitted]
        for key in admitted:
            self._hear_of_end(key, tracks[key], None)
        self._active -= len(admitted)
        self._calls.abort(admitted)
        return tracks

    def _hear_of_end(self, key: str, track: Track, answer: Any | None) -> None:
        """Take what the engine tells of a request's routing when it ends, or is about to be aborted."""
        if self._routes is not None and track.experts is not None:
            rows = self._routes.at_end(self._calls.started.engine, key, answer)
            if rows is not None:
                track.experts.add(0, rows)

    # --- weights ----------------------------------------------------------------------------------

    def prepared(self, version: Version) -> bool:
        """Whether `version` has been fetched and verified, or could not be, which `swap` then says; this begins with
        it, in another thread. Versions that engines pull themselves have nothing to verify."""
        receiver = self._receiver
        if receiver is None or isinstance(receiver, EngineTransferReceiver):
            return True
        if self._ahead is None or (self._ahead.done and self._ahead.version != version):
            self._forget_ahead()
            self._ahead = Ahead(receiver, version)
        return self._ahead.done and self._ahead.version == version

    def _forget_ahead(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.done:
            ahead.drop()

    def swap(self, version: Version) -> SwapReport:
        """Change to the weights of `version`: verify, load between two steps, prove.

        Raises WeightsMissing when `version` is not there, and the engine is as it was; after any other error it
        must not be used any more.
        """
        receiver = self._receiver
        assert receiver is not None
        began, in_flight = time.perf_counter(), len(self._tracks)
        if isinstance(receiver, EngineTransferReceiver):
            manifest = receiver.manifest(version)
            verified = time.perf_counter()  # the probe is the proof
            self._receive(receiver, version)
        else:
            ahead, self._ahead = self._ahead, None
            if ahead is None or ahead.version != version:
                ahead = Ahead(receiver, version)
            with ahead.taken() as (manifest, tensors):
                verified = time.perf_counter()
                self._load(tensors)
        self._change_to(version)
        loaded = time.perf_counter()
        held, gap = self._prove(version, manifest)
        proven = time.perf_counter()
        for output in held:
            self._record(output)
        return SwapReport(
            version=version,
            verify=verified - began,
            pause=loaded - verified,
            probe=proven - loaded,
            in_flight=in_flight,
            gap=gap,
        )

    def _receive(self, receiver: EngineTransferReceiver, version: Version) -> None:
        try:
            receiver.load(version, self._calls.rpc)
        except WeightsMissing:
            raise  # nothing was sent
        except PenstockError as error:
            self._calls.failed = str(error)  # who knows how much of it has arrived
            raise

    def _load(self, tensors: Mapping[str, Any]) -> None:
        self._calls.rpc("load_in_place", {"tensors": list(tensors.items())})

    def _change_to(self, version: Version) -> None:
        """What the engine samples from here on belongs to `version`."""
        if self._section.kv == "recompute":
            self._calls.recompute_all()
        else:
            for track in self._tracks.values():
                track.older_kv |= track.admitted
        self._version = version

    def _prove(self, version: Version, manifest: Manifest) -> tuple[list[Any], float | None]:
        """Run the probe as an ordinary request; returns what other requests sampled meanwhile, and how far the engine
        and the learner are apart.

        Those tokens count only when the probe has passed. Raises WeightsError.
        """
        tokens = manifest.probe.tokens if manifest.probe else probe_tokens(self._calls.vocabulary)
        found, held = self._aside(tokens[: self._section.max_model_len - 1])
        gap = None
        try:
            if manifest.probe is not None:
                gap = judge(version, manifest, found, self._section.dtype, self._has_experts)
            else:
                judge_change(version, self._probed, manifest, found)
        except WeightsError as error:
            self._calls.failed = str(error)
            raise
        self._probed = (manifest, found)
        return held, gap

    def logprobs_of(self, prompt: Sequence[int], response: Sequence[int]) -> Floats:
        """[T] log-probabilities at temperature 1 of the T response tokens, under the engine's weights.

        For parity checks against another implementation. Raises PromptTooLong, EngineFailed.
        """
        tokens = [*prompt, *response]
        if len(tokens) >= self._section.max_model_len:
            raise PromptTooLong(f"{len(tokens)} tokens, engine.max_model_len is {self._section.max_model_len}")
        found, held = self._aside(tokens)
        for output in held:
            self._record(output)
        return np.asarray(found[len(prompt) - 1 :], np.float32)

    def _aside(self, tokens: Sequence[int], what: str = "probe") -> tuple[list[float], list[Any]]:
        """Log-probs of tokens[1:] by an ordinary request before all others; and what the others gave meanwhile."""
        self._asides += 1
        key = f"aside-{self._asides}"
        params = self._vllm.SamplingParams(
            max_tokens=1,
            prompt_logprobs=0,
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
            **(self._masks.aside() if self._masks is not None else {}),
        )
        self._calls.add(key, list(tokens), params, salt=key, priority=-1)
        held: list[Any] = []
        ends = time.monotonic() + self._section.swap_deadline
        while time.monotonic() < ends:
            outputs = self._engine_step()
            mine = [o for o in outputs if o.request_id == key]
            held += [o for o in outputs if o.request_id != key]
            if mine:
                given = mine[0].prompt_logprobs[1:]
                return [given[i][token].logprob for i, token in enumerate(tokens[1:])], held
        raise self._calls.fail(what, f"no answer within {self._section.swap_deadline:g} s (engine.swap_deadline)")

    def _engine_step(self) -> list[Any]:
        """One step of the engine; what it tells of routing goes to the tracks at once, tokens to the caller."""
        outputs = self._calls.step()
        if self._routes is not None:
            for key, start, rows in self._calls.ask("routing", self._routes.after_step):
                track = self._tracks.get(key)
                if track is not None and track.experts is not None:
                    track.experts.add(start, rows)
        return outputs
