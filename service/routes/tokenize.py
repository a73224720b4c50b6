"""`POST /tokenize` and `POST /detokenize`, compatible with vLLM's server."""

from fastapi import APIRouter, Request

from service.app_state import get_state
from service.schemas.statuses import ERRORS
from service.schemas.tokenize_body import DetokenizeBody, Detokenized, TokenizeBody, Tokenized

router = APIRouter(tags=["tokens"], responses=ERRORS)


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, request: Request) -> Tokenized:
    """Return the tokens of a prompt or a chat as the model reads it."""
    state = get_state(request)
    if body.model is not None:
        state.router.resolve(body.model)
    found = await state.engine.tokenize(body.read, add_special_tokens=body.add_special_tokens)
    return Tokenized(
        count=len(found.ids),
        max_model_len=state.engine.context_length,
        tokens=list(found.ids),
        token_strs=list(found.names) if body.return_token_strs else None,
    )


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, request: Request) -> Detokenized:
    """Return the text of tokens."""
    state = get_state(request)
    if body.model is not None:
        state.router.resolve(body.model)
    return Detokenized(prompt=await state.engine.detokenize(body.tokens))
