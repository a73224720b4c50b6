"""`bonbon serve`."""

import asyncio
import signal
import sys
from pathlib import Path
from types import FrameType

import typer

from bonbon.settings import load_settings


def serve(
    model: str = typer.Option(None, help="The base model: a directory in Hugging Face format, or a hub name."),
    reward: str = typer.Option(None, help="A reward model's directory or hub name, a URL, or kind:target."),
    n: int = typer.Option(None, help="How many candidates best-of-n draws."),
    host: str = typer.Option(None, help="Address to listen on."),
    port: int = typer.Option(None, help="Port to listen on; 0 takes a free one."),
    data_dir: Path = typer.Option(None, help="Where the registry's files and the default database live."),
    database: str = typer.Option(None, help="SQLAlchemy URL of the pair log and registry."),
    engine: str = typer.Option(None, help="Which engine draws: embedded, vllm, remote, fake."),
    url: list[str] = typer.Option(None, "--url", help="A vLLM server of the fleet that draws, instead of --engine."),
    auth: bool = typer.Option(None, "--auth/--no-auth", help="Whether requests need a key (default: see the API)."),
    json_logs: bool = typer.Option(False, "--json-logs", help="Write every line as a JSON object."),
) -> None:
    """Answer OpenAI requests with the best of n, and with one draw once a version has learnt it.

    What is not given here comes from the environment (BONBON_MODEL, ...) or from bonbon.toml.
    """
    # Until the server takes signals: nothing has begun. A container's first process could not be stopped at all.
    signal.signal(signal.SIGTERM, _leave)
    given = {"host": host, "port": port, "auth": None if auth is None else "on" if auth else "off"}
    settings = load_settings(
        model=model,
        reward=reward,
        n=n,
        data_dir=data_dir,
        database_url=database,
        engine="remote" if url else engine,
        engine_options={"urls": url} if url else None,
        service={name: value for name, value in given.items() if value is not None},
    )
    # Not before the settings are known to be good: these bring in the whole service.
    import structlog
    import uvicorn

    from bonbon.observability.logs import configure_logs
    from service.app import create_app
    from service.http_server.exit_deadline import Backstop
    from service.http_server.garbage_collection import settle_garbage
    from service.http_server.server import run_server
    from service.middleware.request_tracing import exported_traces

    configure_logs(json=json_logs)
    log = structlog.get_logger(__name__)
    app = create_app(settings)
    service = settings.service

    def ready(url: str) -> None:
        settle_garbage()
        reason = app.state.bonbon.startup.failure
        if reason and json_logs:
            log.error("bonbon listens but is not ready", url=url, reason=reason)
        elif reason:
            typer.echo(f"bonbon listens at {url} but is not ready: {reason}", err=True)
        elif json_logs:
            log.info("bonbon is ready", url=url)
        else:
            typer.echo(f"bonbon is ready: {url} (API under {url}/v1, docs at {url}/docs)")

    loop_factory = uvicorn.Config(app, log_config=None).get_loop_factory()  # uvloop where it is installed
    with exported_traces(service), asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(
            run_server(
                app,
                host=service.host,
                port=service.port,
                drain_timeout=service.drain_timeout,
                ready=ready,
                backstop=Backstop(),
            )
        )
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # everything has ended: one more must not make it look otherwise


def _leave(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)
