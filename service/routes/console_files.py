"""`/console`: serves the static files of the web console, which reads /admin with the key that its user enters."""

from pathlib import Path

from fastapi import APIRouter, HTTPException, Request
from starlette.responses import FileResponse, RedirectResponse

router = APIRouter(tags=["console"], include_in_schema=False)

FILES = Path(__file__).parents[1] / "console"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
SERVED = {path.relative_to(FILES).as_posix(): path for path in FILES.rglob("*") if path.suffix in KINDS}
HEADERS = {
    # No external or inline content, no framing, and no forms to other sites.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",
}


@router.get("/")
async def root(request: Request) -> RedirectResponse:
    """Redirect a browser that opens the service's address to the console."""
    return RedirectResponse("console/", headers=HEADERS)


@router.get("/console")
async def console(request: Request) -> RedirectResponse:
    # Relative, so that it works behind a proxy that adds a prefix.
    return RedirectResponse("console/", headers=HEADERS)


@router.get("/console/{name:path}")
async def file(name: str) -> FileResponse:
    path = SERVED.get(name or "index.html")
    if path is None:
        raise HTTPException(404, f"there is no {name[:64]!r} in the console")
    return FileResponse(path, headers=HEADERS, media_type=KINDS[path.suffix])
