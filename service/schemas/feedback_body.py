"""A person's judgement of an answer."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from bonbon.errors import UserError
from bonbon.pairs.group_records import Feedback
from service.schemas.request_body import Body, Identifier
from service.schemas.without_effect import WHOLE


class FeedbackBody(Body):
    """The body of `POST /v1/feedback`: a score, a chosen candidate, a comment, or several of these."""

    group_id: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    """The `bonbon.group_id` of the answer."""
    score: float | None = None
    """A score on a scale of your own; higher is better."""
    chosen: Annotated[int, Field(ge=0), WHOLE] | None = None
    """The index of the candidate that should have been the answer."""
    comment: Annotated[str, StringConstraints(max_length=20_000)] | None = None
    user: Identifier | None = None
    """The person who gives the feedback."""

    @model_validator(mode="after")
    def _says_something(self) -> "FeedbackBody":
        if self.score is None and self.chosen is None and not self.comment:
            raise UserError("give a score, a chosen candidate or a comment", param="score")
        return self

    def record(self) -> Feedback:
        """The stored feedback."""
        return Feedback(self.group_id, datetime.now(UTC), self.score, self.chosen, self.comment, self.user or "")
