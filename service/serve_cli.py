"""`bonbon serve`: starts the service."""

import asyncio
import signal
import sys
from pathlib import Path
from types import FrameType

import typer

from bonbon.observability.logs import configure_logs
from bonbon.observability.output_relay import relay_output
from bonbon.settings import load_settings


def serve(
    model: str = typer.Option(None, help="The base model: a directory in Hugging Face format, or a hub name."),
    reward: str = typer.Option(None, help="The reward: the directory or hub name of a model, a URL, or kind:target."),
    n: int = typer.Option(None, help="Number of candidates that best-of-n samples."),
    host: str = typer.Option(None, help="Address to listen on."),
    port: int = typer.Option(None, help="Port to listen on; 0 selects a free port."),
    data_dir: Path = typer.Option(None, help="Directory of the registry's files and the default database."),
    database: str = typer.Option(None, help="SQLAlchemy URL of the pair log and registry."),
    engine: str = typer.Option(None, help="The engine: embedded, vllm, remote or fake."),
    url: list[str] = typer.Option(None, "--url", help="A vLLM server to use instead of --engine; may be repeated."),
    auth: bool = typer.Option(
        None,
        "--auth/--no-auth",
        help="Whether requests need an API key (default: unless only this machine can connect and no key exists).",
    ),
    json_logs: bool = typer.Option(False, "--json-logs", help="Write each log line as a JSON object."),
) -> None:
    """Serve OpenAI's API with best-of-n answers, and with fewer candidates once a distilled version is promoted.

    Settings that are not given here are read from the environment (BONBON_MODEL, ...) or from bonbon.toml.
    """
    # Until the server handles signals, there is nothing to finish. Without a handler, SIGTERM would not stop the first
    # process of a container at all.
    signal.signal(signal.SIGTERM, _leave)
    if json_logs:
        relay_output()
    configure_logs(json=json_logs)
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
    # These import the whole service, so they wait until the settings are known to be valid.
    import structlog
    import uvicorn

    from service.app import create_app
    from service.http_server.exit_deadline import Backstop
    from service.http_server.garbage_collection import settle_garbage
    from service.http_server.server import run_server
    from service.middleware.request_tracing import exported_traces

    log = structlog.get_logger(__name__)
    app = create_app(settings)
    service = settings.service

    def ready(url: str) -> None:
        settle_garbage()
        reason = app.state.bonbon.startup.failure
        if reason and json_logs:
            log.error("bonbon is listening but is not ready", url=url, reason=reason)
        elif reason:
            typer.echo(f"bonbon is listening at {url} but is not ready: {reason}", err=True)
        elif json_logs:
            log.info("bonbon is ready", url=url)
        else:
            typer.echo(f"bonbon is ready: {url} (API under {url}/v1, docs at {url}/docs)")

    loop_factory = uvicorn.Config(app, log_config=None).get_loop_factory()  # uvloop if it is installed
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
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # the service has stopped: a late signal must not change the exit status


def _leave(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)
