"""What `engine_options` may hold for the embedded engine."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from bonbon.engines.structured.tool_format import ToolParser


class EmbeddedOptions(BaseModel):
    """What `engine_options` may hold for the embedded engine."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    device: str = "auto"
    """auto: cuda if there is one, else cpu; or a torch device such as cuda:1."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: as in the checkpoint on a GPU, float32 on the CPU."""
    max_rows: int = Field(128, ge=1)
    """Most candidates a model draws at once; more wait. It bounds the memory that draws take."""
    threads: int = Field(0, ge=0)
    """CPU threads for torch; 0 leaves torch's own choice."""
    tool_parser: ToolParser = "auto"
    """How the model writes calls of functions: hermes, llama3_json or mistral, the names that vLLM has for them; auto:
    as its chat template shows."""
    schema_timeout: float = Field(10.0, gt=0)
    """Seconds that the schemas of a response_format or of tools may take to compile; a request that needs longer is
    refused."""
