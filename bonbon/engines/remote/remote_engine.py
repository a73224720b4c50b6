"""The engine for a fleet of vLLM servers over HTTP; docs/fleet.md explains how to start them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import structlog

from bonbon.engines.engine import Delta, DrawRequest, Engine, PromptLogprobs, Started, Tokens, VersionFiles, VersionKind
from bonbon.engines.remote.fleet import Fleet
from bonbon.engines.remote.protocol import (
    ServerRequest,
    estimate_length,
    events,
    prompt_answer,
    prompt_request,
    server_request,
)
from bonbon.engines.remote.protocol_errors import ServerFailed
from bonbon.engines.remote.remote_options import RemoteOptions
from bonbon.engines.remote.replica import Replica
from bonbon.engines.remote.vllm_server import Server
from bonbon.engines.request_limits import check_length, check_request
from bonbon.errors import HOW_TO_START, EngineError, UserError
from bonbon.prompt import Prompt

log = structlog.get_logger(__name__)


class RemoteEngine(Engine):
    """Samples on a fleet of vLLM servers.

    Without `deltas`, candidates are held back until all of a request are complete. Until then, another server can
    repeat the request when one fails. A stream cannot be repeated once its first event has been yielded. A fleet
    reports log-probabilities after every field of `Sampling` has changed the distribution, not before.

    Args:
        base: The name of the base version.
    """

    def __init__(self, base: str, options: RemoteOptions) -> None:
        self._base, self._options = base, options
        self._fleet: Fleet | None = None

    @property
    def base(self) -> str:
        return self._base

    @property
    def context_length(self) -> int:
        return self._running.context_length

    async def start(self) -> None:
        """Starts monitoring the fleet.

        A fleet that does not answer is not an error here; `check` reports it until it does.
        """
        if self._fleet is None:
            options, bearer = self._options, self._options.bearer
            replicas = [_replica(url, options, bearer) for url in options.urls]
            self._fleet = Fleet(replicas, self._base, interval=options.health_interval, quorum=options.quorum)
            await self._fleet.start()

    async def stop(self) -> None:
        if self._fleet is not None:
            fleet, self._fleet = self._fleet, None
            await fleet.stop()

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        fleet = self._running
        check_request(request)
        outgoing = server_request(request)
        until = asyncio.get_running_loop().time() + self._options.deadline
        tried: list[Replica] = []
        failure: ServerFailed | None = None
        again: Replica | None = None
        for _ in range(2):
            replica = again or fleet.pick(request.version, tried)
            if replica is None:
                break
            begun = False
            try:
                async with aclosing(self._draw_on(replica, request, outgoing, until)) as received:
                    async for event in received:
                        begun = True
                        yield event
                return
            except ServerFailed as error:
                log.warning(
                    "a server failed a request", url=replica.url, version=request.version, error=str(error), begun=begun
                )
                failure = error
                again = replica if await fleet.failed(replica, error, request.version) else None
                if begun:
                    break
                tried.append(replica)
        if failure is None:
            raise EngineError(f"no server of the fleet can serve {request.version} at the moment; try again")
        raise EngineError(f"{failure}; try again") from failure

    async def prompt_logprobs(self, request: DrawRequest) -> PromptLogprobs:
        if not self._options.prompt_logprobs:
            raise UserError(
                "echo with logprobs is disabled for this fleet; set engine_options.prompt_logprobs to true if its "
                "servers run on GPUs (on a CPU, vLLM crashes when it computes them)",
                param="logprobs",
            )
        prompt, until = request.prompt, asyncio.get_running_loop().time() + self._options.deadline
        replica = self._running.pick(request.version)
        if replica is None:
            raise EngineError(f"no server of the fleet can serve {request.version} at the moment; try again")
        model = replica.model if request.version == self._base else request.version
        try:
            with replica.busy(1):
                ids = prompt.token_ids or (await replica.tokenize(prompt, None)).ids
                check_length(len(ids), request, self.context_length, max_tokens=1)
                text = prompt.text if prompt.text is not None else await replica.text(ids)
                first = await replica.text(ids[:1])
                outgoing = prompt_request(ids, request)
                async with aclosing(
                    replica.server.answers(outgoing.path, {"model": model, **outgoing.body}, until)
                ) as answers:
                    answer = await anext(answers)
        except ServerFailed as error:
            # No other server is tried: if this request crashed the server, it would crash the others, too.
            await self._running.failed(replica, error, request.version)
            raise EngineError(f"{error}; try again") from error
        return prompt_answer(Started(tuple(ids), text), first, request.sampling.top_logprobs, answer)

    async def tokenize(self, prompt: Prompt, *, add_special_tokens: bool | None = None) -> Tokens:
        return await self._any().tokenize(prompt, add_special_tokens)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return await self._any().text(token_ids)

    def _any(self) -> Replica:
        replica = self._running.pick(self._base)
        if replica is None:
            raise EngineError(self._running.why())
        return replica

    async def load(self, version: VersionFiles) -> None:
        if version.name == self._base:
            return
        if version.kind is not VersionKind.ADAPTER:
            raise UserError(
                f"{version.name} has full weights, and a fleet loads only adapters: start servers with these weights "
                "and name them in engine_options.urls, or train with train.method = 'lora'"
            )
        await self._running.load(version)

    async def unload(self, name: str) -> None:
        if name != self._base:
            await self._running.unload(name)

    async def loaded(self) -> frozenset[str]:
        fleet = self._running
        able = [name for name in (self._base, *fleet.wanted) if fleet.pick(name) is not None]
        return frozenset(able)

    async def check(self) -> None:
        if not self._running.up:
            raise EngineError(self._running.why())

    @property
    def _running(self) -> Fleet:
        if self._fleet is None:
            raise EngineError(f"the engine is not started: {HOW_TO_START.format('engine')}")
        return self._fleet

    async def _draw_on(
        self, replica: Replica, request: DrawRequest, outgoing: ServerRequest, until: float
    ) -> AsyncGenerator[Started | Delta]:
        """Makes one attempt. Raises ServerFailed when another server may succeed."""
        prompt, model = request.prompt, replica.model if request.version == self._base else request.version
        left, started = set(range(request.n)), False
        with replica.busy(request.n):
            text = prompt.text if prompt.token_ids is None else await replica.text(prompt.token_ids)
            if estimate_length(prompt) + request.sampling.max_tokens > self.context_length:
                # A server would accept a request that does not fit, and truncate the completion.
                ids = prompt.token_ids
                tokens = len(ids) if ids is not None else await replica.count(prompt)
                check_length(tokens, request, self.context_length)
            async with aclosing(
                replica.server.answers(outgoing.path, {"model": model, **outgoing.body}, until)
            ) as answers:
                async for answer in answers:
                    found = list(events(request, answer, text))
                    if not started and any(isinstance(one, Delta) and one.finish_reason == "abort" for one in found):
                        raise ServerFailed("a server of the fleet stopped during a request")
                    for event in found:
                        if isinstance(event, Started):
                            if started:
                                continue
                            started = True
                            check_length(len(event.token_ids), request, self.context_length)
                        elif event.finish_reason:
                            left.discard(event.index)
                        yield event
        if left:
            raise ServerFailed("a server of the fleet closed a stream before its end")


def _replica(url: str, options: RemoteOptions, bearer: str | None) -> Replica:
    server = Server(
        url,
        bearer=bearer,
        connections=options.connections,
        connect_timeout=options.connect_timeout,
        max_bytes=options.max_response_bytes,
    )
    return Replica(
        server,
        model=options.model,
        timeout=options.health_timeout,
        load_timeout=options.load_timeout,
        unhealthy_after=options.unhealthy_after,
    )
