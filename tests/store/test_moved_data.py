"""Tests of a data directory that was moved or restored under another path: its own files are read."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from bonbon.errors import UserError
from bonbon.files.model_files import resolve_model
from bonbon.registry.registry import Registry
from bonbon.registry.version_records import Version
from bonbon.settings import Settings
from bonbon.store.database import Database, open_database
from bonbon.store.tables import versions
from tests.store.test_backup import settings_on
from tests.support.service.running_service import BASE, WatchedEngine, new_version, running, settings_in, write_adapter


def copied(live: Path, elsewhere: Path) -> Path:
    """Copies the data directory, and then changes the files of the original."""
    shutil.copytree(live, elsewhere)
    for weights in live.glob("versions/*/adapter_model.safetensors"):
        write_adapter(weights.parent, 99)
    return elsewhere


async def of_an_earlier_release(url: str, versions_dir: Path) -> None:
    """Stores absolute paths, as earlier releases did."""
    async with open_database(url) as database, database.write() as connection:
        for digest in [row.digest for row in await connection.execute(select(versions.c.digest)) if row.digest]:
            absolute = str(versions_dir / digest)
            await connection.execute(update(versions).where(versions.c.digest == digest).values(directory=absolute))


async def promoted(settings: Settings) -> Version:
    async with running(settings, engine=WatchedEngine()) as service:
        version = await service.promoted(1)
        await service.state.swapper.converge()
        assert service.state.router.champion == version.name
    return version


@pytest.mark.parametrize("earlier", [False, True], ids=["relative", "absolute"])
async def test_a_copy_under_another_path_serves_its_own_files(database_url: str, tmp_path: Path, earlier: bool) -> None:
    live, restored = tmp_path / "live", tmp_path / "restored"
    version = await promoted(settings_on(live, database_url))
    if earlier:
        await of_an_earlier_release(database_url, live / "versions")
    copied(live, restored)
    engine = WatchedEngine()
    async with running(settings_on(restored, database_url), engine=engine) as service:
        assert service.state.router.champion == version.name
        assert engine.directories[version.name] == restored / "versions" / version.digest
        assert (await service.ask()).json()["bonbon"]["version"] == version.name
        assert (await service.state.registry.verify(version.name)).digest == version.digest
    async with running(settings_on(live, database_url), engine=WatchedEngine()) as service:
        # The files of the original are other ones, and their digests say so.
        assert service.state.router.champion == BASE
        assert version.name in service.state.swapper.refused


async def test_a_default_database_moves_with_its_directory(tmp_path: Path) -> None:
    version = await promoted(settings_in(tmp_path / "live"))
    copied(tmp_path / "live", tmp_path / "moved")
    shutil.rmtree(tmp_path / "live")
    async with running(settings_in(tmp_path / "moved"), engine=WatchedEngine()) as service:
        assert service.state.router.champion == version.name


async def test_files_that_were_not_copied_are_named_with_the_remedy(database_url: str, tmp_path: Path) -> None:
    live, elsewhere = tmp_path / "live", tmp_path / "elsewhere"
    version = await promoted(settings_on(live, database_url))
    async with running(settings_on(elsewhere, database_url), engine=WatchedEngine()) as service:
        assert service.state.router.champion == BASE
        with pytest.raises(UserError) as refusal:
            await service.state.registry.verify(version.name)
    assert str(refusal.value) == (
        f"the files of {version.name} are not in {elsewhere}/versions/{version.digest}: copy the directory 'versions' "
        "there from the data directory or the backup that has it, or set data_dir (BONBON_DATA_DIR) to that data "
        "directory"
    )


def make_base(directory: Path) -> Path:
    directory.mkdir(parents=True)
    write_adapter(directory, 0)
    (directory / "config.json").write_text("{}")
    return resolve_model(str(directory))


async def stored(database: Database) -> list[Any]:
    async with database.read() as connection:
        return [row.directory for row in await connection.execute(select(versions).order_by(versions.c.name))]


async def test_a_base_in_the_data_directory_moves_with_it_and_another_stays(database: Database, tmp_path: Path) -> None:
    registry = Registry(database, tmp_path / "live" / "versions")
    await registry.register_base("inside", make_base(tmp_path / "live" / "models" / "inside"))
    await registry.register_base("outside", make_base(tmp_path / "outside"))
    await registry.register_base("remote", None)
    assert await stored(database) == ["models/inside", str(tmp_path / "outside"), "."]
    (tmp_path / "live").rename(tmp_path / "moved")
    moved = Registry(database, tmp_path / "moved" / "versions")
    assert (await moved.verify("inside")).directory == tmp_path / "moved" / "models" / "inside"
    assert (await moved.verify("outside")).directory == tmp_path / "outside"
    assert (await moved.verify("remote")).directory == Path()
    (tmp_path / "outside").rename(tmp_path / "gone")
    with pytest.raises(UserError, match=r"the base model outside is not in .*/outside any more: set model") as refusal:
        await moved.verify("outside")
    assert refusal.value.param == "model"


async def test_new_versions_are_stored_by_relative_paths(database: Database, tmp_path: Path) -> None:
    registry = Registry(database, tmp_path / "versions")
    await registry.register_base(BASE, None)
    version = await new_version(registry, 1)
    assert await stored(database) == [".", f"versions/{version.digest}"]
