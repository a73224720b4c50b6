"""Reads single metrics of a running service."""

from typing import Protocol

import httpx2


class Service(Protocol):
    @property
    def url(self) -> str: ...


async def metric(service: Service, sample: str) -> float:
    """Returns the value of a sample, named with its labels as in the exposition format; 0 when it does not exist."""
    async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
        return metric_of((await client.get("/metrics")).text, sample)


def metric_of(exposition: str, sample: str) -> float:
    """Returns the value of a sample in a scraped exposition."""
    lines = exposition.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample + " ")), 0.0)
