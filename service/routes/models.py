"""`GET /v1/models`."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from bonbon.errors import UnknownVersion
from service.app_state import get_state
from service.routing.router import ServedModel
from service.schemas.replies import Model, ModelExtension, ModelList
from service.schemas.statuses import ERRORS

router = APIRouter(prefix="/v1", tags=["openai"])


@router.get("/models", response_class=Response, responses={200: {"model": ModelList}, 401: ERRORS[401]})
async def list_models(request: Request) -> Response:
    """List every model name that a request may use: the aliases, `base`, and the loaded versions."""
    state = get_state(request)
    length = state.engine.context_length
    models = ModelList(data=[_model(served, length) for served in state.router.models()])
    return JSONResponse(models.model_dump())


@router.get(
    "/models/{model:path}",
    response_class=Response,
    responses={200: {"model": Model}, 401: ERRORS[401], 404: ERRORS[404]},
)
async def retrieve_model(model: str, request: Request) -> Response:
    """Return the version to which a model name refers now."""
    state = get_state(request)
    models = state.router.models()
    for served in models:
        if served.id == model:
            return JSONResponse(_model(served, state.engine.context_length).model_dump())
    known = ", ".join(served.id for served in models)
    raise UnknownVersion(f"model {model[:100]!r} is not served here; available models: {known}", param="model")


def _model(served: ServedModel, context_length: int) -> Model:
    return Model(
        id=served.id,
        created=served.created,
        root=served.version,
        max_model_len=context_length,
        bonbon=ModelExtension(version=served.version, parent=served.parent),
    )
