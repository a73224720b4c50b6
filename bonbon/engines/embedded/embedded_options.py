"""The options of the embedded engine (`engine_options`)."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from bonbon.engines.structured.tool_format import ToolParser


class EmbeddedOptions(BaseModel):
    """The options of the embedded engine (`engine_options`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    device: str = "auto"
    """The device for the model: a torch device such as cuda:1, or auto for a GPU if there is one and else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The type of the weights; auto means the checkpoint's type on a GPU and float32 on the CPU."""
    max_rows: int = Field(128, ge=1)
    """The maximum number of candidates that a model samples concurrently; others wait. It bounds the memory of the
    engine."""
    threads: int = Field(0, ge=0)
    """The number of CPU threads for torch; 0 keeps torch's default."""
    tool_parser: ToolParser = "auto"
    """The format in which the model writes tool calls, by the name of vLLM's parser; auto detects it from the chat
    template."""
    schema_timeout: float = Field(10.0, gt=0)
    """The seconds that compiling the schemas of a response_format or of tools may take; a request that needs longer is
    refused."""
