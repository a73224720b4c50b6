"""Single figures of a running service."""

from typing import Protocol

import httpx2


class Service(Protocol):
    @property
    def url(self) -> str: ...


async def metric(service: Service, sample: str) -> float:
    """The value of a sample, named with its labels as the exposition has it; 0 where there is none."""
    async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
        return metric_of((await client.get("/metrics")).text, sample)


def metric_of(exposition: str, sample: str) -> float:
    """The same of what was scraped."""
    lines = exposition.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample + " ")), 0.0)
