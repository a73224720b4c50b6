"""Decodes token-id prompts with the tokenizer of the model that read them, so that rewards can score them."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import select

from bonbon.errors import UserError
from bonbon.pairs.group_records import Group
from bonbon.prompt import Prompt
from bonbon.store.database import Database
from bonbon.store.tables import versions

if TYPE_CHECKING:
    from bonbon.engines.text.transcript import Detokenizer

log = structlog.get_logger(__name__)


class ReadablePrompts:
    """Decodes token ids with the tokenizers of the bases registered in `database`. Each tokenizer is loaded once.

    The database stores the paths of bases inside `data_dir` relative to it.
    """

    def __init__(self, database: Database, data_dir: Path) -> None:
        self._database, self._data_dir = database, data_dir.absolute()
        self._detokenizers: dict[str, Detokenizer | None] = {}

    async def of(self, group: Group) -> Prompt | None:
        """Returns the prompt that the reward scored the group's candidates for.

        Returns None for a token-id prompt whose base is unknown or has no tokenizer that this process can load.
        """
        token_ids = group.prompt.token_ids
        if token_ids is None:
            return group.prompt
        if group.version not in self._detokenizers:
            self._detokenizers[group.version] = await self._load(group.version)
        detokenizer = self._detokenizers[group.version]
        return None if detokenizer is None else Prompt(text=detokenizer.text(token_ids, special=True))

    async def _load(self, version: str) -> "Detokenizer | None":
        base = select(versions.c.base).where(versions.c.name == version).scalar_subquery()
        async with self._database.read() as connection:
            query = select(versions.c.directory).where(versions.c.name == base)
            directory = (await connection.execute(query)).scalar_one_or_none()
        if not directory:
            log.warning("token-id prompts cannot be decoded: their model is not registered", version=version)
            return None
        # Imports transformers, which most logs do not need.
        from bonbon.engines.text.tokenizer import load_tokenizer
        from bonbon.engines.text.transcript import Detokenizer

        try:
            return Detokenizer(await asyncio.to_thread(load_tokenizer, self._data_dir / directory))
        except UserError as error:
            log.warning("token-id prompts cannot be decoded", version=version, reason=str(error))
            return None
