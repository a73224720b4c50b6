"""Buffers of streamed data that clients have not read yet."""

import asyncio

import pytest

from bonbon.errors import ClientTooSlow
from service.http_server.send_buffer import PIECE, SendBuffers


async def test_what_is_put_is_taken_in_order_up_to_the_end() -> None:
    buffers = SendBuffers(10**6)
    buffer = buffers.open()
    taking = asyncio.create_task(buffer.take())
    await asyncio.sleep(0)
    assert not taking.done()
    for piece in (b"a", b"b", b"c"):
        buffer.put(piece)
    assert (await taking, buffers.bytes) == (b"abc", 0)
    buffer.put(b"d")
    buffer.end()
    assert buffers.bytes == 1
    assert [await buffer.take(), await buffer.take()] == [b"d", b""]
    buffer.close()


async def test_no_more_is_taken_at_once_than_is_sent_at_once() -> None:
    buffer = SendBuffers(10**6).open()
    half, large = b"x" * (PIECE // 2), b"y" * (2 * PIECE)
    for piece in (half, half, half, large, half):
        buffer.put(piece)
    assert [len(await buffer.take()) for _ in range(4)] == [PIECE, PIECE // 2, 2 * PIECE, PIECE // 2]


async def test_when_too_much_waits_the_largest_goes_and_the_others_stay() -> None:
    buffers = SendBuffers(100)
    small, large, newest = (buffers.open() for _ in range(3))
    small.put(b"s" * 20)
    large.put(b"l" * 50)
    newest.put(b"n" * 40)
    assert buffers.bytes == 60
    with pytest.raises(ClientTooSlow):
        large.put(b"l")
    with pytest.raises(ClientTooSlow):
        await large.take()
    assert (await small.take(), await newest.take()) == (b"s" * 20, b"n" * 40)
    with pytest.raises(ClientTooSlow):
        small.put(b"s" * 101)
    assert buffers.bytes == 0


async def test_a_reader_that_waits_is_told_when_its_stream_is_cut_off() -> None:
    buffers = SendBuffers(10)
    buffer = buffers.open()
    taking = asyncio.create_task(buffer.take())
    await asyncio.sleep(0)
    with pytest.raises(ClientTooSlow):
        buffer.put(b"x" * 11)
    with pytest.raises(ClientTooSlow):
        await taking


async def test_a_stream_that_is_closed_holds_nothing() -> None:
    buffers = SendBuffers(100)
    buffer, other = buffers.open(), buffers.open()
    buffer.put(b"x" * 90)
    buffer.close()
    buffer.close()
    other.put(b"y" * 90)
    assert buffers.bytes == 90
