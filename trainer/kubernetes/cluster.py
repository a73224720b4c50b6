"""Training in a Job of its own on Kubernetes, made from a CronJob that is suspended.

What asks for GPUs exists only while a round is trained; whoever looks whether one is due needs none.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp

from bonbon.errors import BonbonError, UserError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
DEADLINE = 30.0
"""Seconds that a request to the API may take."""
FIRST_PAUSE, LONGEST_PAUSE = timedelta(minutes=15), timedelta(hours=12)
"""Between a Job that failed and the next one; the pause doubles with each failure in a row."""

Resource = Mapping[str, Any]


class ClusterError(BonbonError):
    """The Kubernetes API refused a request, or could not be reached."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A namespace of the API server at `url`, used with a service account's token."""

    url: str
    namespace: str
    token: str
    certificates: ssl.SSLContext | bool = True

    @classmethod
    def of_this_pod(cls, environment: Mapping[str, str], account: Path = ACCOUNT) -> "Cluster":
        """The one that this process runs on. Raises UserError where it is no pod, or has no service account's token."""
        host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not (account / "token").is_file():
            raise UserError(
                "--create-job works in a pod of Kubernetes whose service account may make Jobs; this process is not in "
                f"one, or {account} has no token (automountServiceAccountToken)"
            )
        return cls(
            url=f"https://{f'[{host}]' if ':' in host else host}:{port}",
            namespace=(account / "namespace").read_text().strip(),
            token=(account / "token").read_text().strip(),
            certificates=ssl.create_default_context(cafile=account / "ca.crt"),
        )

    async def create_job(self, cronjob: str) -> str:
        """Make a Job from the template of `cronjob`, unless one made from it is at work or failed just now.

        Returns:
            A sentence that says what was done.

        Raises:
            ClusterError: the API refused or did not answer.
        """
        async with aiohttp.ClientSession(
            headers={"authorization": f"Bearer {self.token}"}, timeout=aiohttp.ClientTimeout(total=DEADLINE)
        ) as session:
            template = await self._ask(session, "GET", f"cronjobs/{cronjob}")
            listed = await self._ask(session, "GET", "jobs")
            made = [job for job in listed["items"] if _is_made_from(job, template)]
            if running := next((job for job in made if _ended(job) is None), None):
                return f"The Job {running['metadata']['name']} is at work."
            if (until := _pause_after(made)) is not None and datetime.now(UTC) < until:
                return f"The last Job failed; the next one is made after {until:%Y-%m-%d %H:%M} UTC."
            job = await self._ask(session, "POST", "jobs", _job_of(template))
        return f"The Job {job['metadata']['name']} was made."

    async def _ask(
        self, session: aiohttp.ClientSession, method: str, path: str, body: Resource | None = None
    ) -> dict[str, Any]:
        url = f"{self.url}/apis/batch/v1/namespaces/{self.namespace}/{path}"
        try:
            async with session.request(method, url, json=body, ssl=self.certificates) as response:
                answer: dict[str, Any] = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ClusterError(f"the Kubernetes API did not answer {method} {path}: {error or 'too late'}") from error
        if not response.ok:
            reason = answer.get("message") or response.reason
            raise ClusterError(f"the Kubernetes API refused {method} {path} with {response.status}: {reason}")
        return answer


def _job_of(cronjob: Resource) -> dict[str, Any]:
    """As `kubectl create job --from=cronjob/...` makes it."""
    metadata, template = cronjob["metadata"], cronjob["spec"]["jobTemplate"]
    own = template.get("metadata", {})
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "generateName": f"{metadata['name']}-",
            "labels": dict(own.get("labels", {})),
            "annotations": dict(own.get("annotations", {})) | {"cronjob.kubernetes.io/instantiate": "manual"},
            "ownerReferences": [
                {"apiVersion": "batch/v1", "kind": "CronJob", "name": metadata["name"], "uid": metadata["uid"]}
            ],
        },
        "spec": template["spec"],
    }


def _is_made_from(job: Resource, cronjob: Resource) -> bool:
    owners = job["metadata"].get("ownerReferences", [])
    return any(owner["uid"] == cronjob["metadata"]["uid"] for owner in owners)


def _ended(job: Resource) -> Resource | None:
    """The condition that says how the Job ended; None while it has not."""
    conditions = job.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] in ("Complete", "Failed") and one["status"] == "True"), None)


def _pause_after(jobs: list[Resource]) -> datetime | None:
    """When a Job may be made again after these, which all ended; None: now."""
    ends = [end for job in jobs if (end := _ended(job)) is not None]
    ends.sort(key=lambda end: datetime.fromisoformat(end["lastTransitionTime"]), reverse=True)
    failures = next((i for i, end in enumerate(ends) if end["type"] == "Complete"), len(ends))
    if failures == 0:
        return None
    pause = min(FIRST_PAUSE * (1 << min(failures - 1, 10)), LONGEST_PAUSE)
    return datetime.fromisoformat(ends[0]["lastTransitionTime"]) + pause
