"""`POST /tokenize` and `POST /detokenize`, compatible with vLLM's server."""

from fastapi import APIRouter, Request, Response

from service.answering.completion_request import estimated_tokens
from service.app_state import AppState, get_state
from service.auth.access import caller
from service.schemas.statuses import ERRORS
from service.schemas.tokenize_body import DetokenizeBody, Detokenized, TokenizeBody, Tokenized

router = APIRouter(tags=["tokens"], responses=ERRORS)


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, request: Request, response: Response) -> Tokenized:
    """Return the tokens of a prompt or a chat as the model reads it."""
    state, tenant, prompt = get_state(request), caller(request).tenant, body.read
    _check_model(state, body.model)
    with state.limits.charged(tenant, estimated_tokens(prompt)) as charge:
        found = await state.engine.tokenize(prompt, add_special_tokens=body.add_special_tokens)
        charge.drawn = len(found.ids)
    response.headers.update(state.limits.headers(tenant))
    return Tokenized(
        count=len(found.ids),
        max_model_len=state.engine.context_length,
        tokens=list(found.ids),
        token_strs=list(found.names) if body.return_token_strs else None,
    )


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, request: Request, response: Response) -> Detokenized:
    """Return the text of tokens."""
    state, tenant = get_state(request), caller(request).tenant
    _check_model(state, body.model)
    with state.limits.charged(tenant, len(body.tokens)) as charge:
        text = await state.engine.detokenize(body.tokens)
        charge.drawn = len(body.tokens)
    response.headers.update(state.limits.headers(tenant))
    return Detokenized(prompt=text)


def _check_model(state: AppState, model: str | None) -> None:
    if model is not None:
        state.router.resolve(model)
