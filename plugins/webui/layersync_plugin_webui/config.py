"""Settings of ``layersync webui``; none is required."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class WebuiConfig(BaseModel):
    """Settings of ``layersync webui``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    port: int | None = Field(
        None, ge=0, le=65535, examples=[8765], description="port (default: 8765, or a free one if that is taken)"
    )
    runs: str = Field(".", description="folder below which runs are looked for (default: this one)")
    host: str = Field(
        "127.0.0.1", description="address to listen on; any but this machine's own lets in everyone who has the token"
    )
    allow_commands: bool = Field(
        False,
        description="start and stop programs from the page even though --host lets others in: anyone who has the token "
        "may then run anything as you (always allowed on this machine's own address)",
    )
