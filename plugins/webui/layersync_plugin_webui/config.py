"""What ``layersync webui`` may be told; it needs nothing."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class WebuiConfig(BaseModel):
    """Settings of ``layersync webui``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    port: int | None = Field(None, ge=0, le=65535, description="port (default: 8765, or a free one if that is taken)")
    runs: str = Field(".", description="folder below which runs are looked for (default: this one)")
    host: str = Field(
        "127.0.0.1", description="address to listen on; any but this machine's own lets others in who have the token"
    )
