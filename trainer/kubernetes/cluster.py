"""Creates training Jobs on Kubernetes from a suspended CronJob.

Only the Job requests GPUs, and it exists only while a round is trained. The pod that checks for work needs none.
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
"""The maximum duration of a request to the API, in seconds."""
FIRST_PAUSE, LONGEST_PAUSE = timedelta(minutes=15), timedelta(hours=12)
"""The first and the longest pause between a failed Job and the next one. It doubles with each consecutive failure."""

Resource = Mapping[str, Any]


class ClusterError(BonbonError):
    """Raised when the Kubernetes API refuses a request or cannot be reached."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A namespace of the API server at `url`, used with a service account's token."""

    url: str
    namespace: str
    token: str
    certificates: ssl.SSLContext | bool = True

    @classmethod
    def of_this_pod(cls, environment: Mapping[str, str], account: Path = ACCOUNT) -> "Cluster":
        """Returns the cluster of this process. Raises UserError outside a pod or without a service account's token."""
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
        """Creates a Job from the template of `cronjob`, unless a Job from it is running or has just failed.

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
    """Returns the Job that `kubectl create job --from=cronjob/...` would create."""
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
    """Returns the condition that says how the Job ended, or None if it has not ended."""
    conditions = job.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] in ("Complete", "Failed") and one["status"] == "True"), None)


def _pause_after(jobs: list[Resource]) -> datetime | None:
    """Returns when the next Job may be created after these, which have all ended; None stands for now."""
    ends = [end for job in jobs if (end := _ended(job)) is not None]
    ends.sort(key=lambda end: datetime.fromisoformat(end["lastTransitionTime"]), reverse=True)
    failures = next((i for i, end in enumerate(ends) if end["type"] == "Complete"), len(ends))
    if failures == 0:
        return None
    pause = min(FIRST_PAUSE * (1 << min(failures - 1, 10)), LONGEST_PAUSE)
    return datetime.fromisoformat(ends[0]["lastTransitionTime"]) + pause
