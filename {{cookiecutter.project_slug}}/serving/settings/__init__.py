"""serving.yaml as typed settings: `document` is the file, `engines` its engine sections."""

from serving.settings.document import (
    ModelSection,
    Quota,
    Settings,
    SettingsError,
    Timeouts,
    Warmup,
    load_settings,
)
from serving.settings.engines import (
    EngineBase,
    EngineSettings,
    GpuEngine,
    OpenAICompatibleEngine,
    ProcessEngine,
    SglangEngine,
    TransformersEngine,
    VllmEngine,
)

__all__ = [
    "EngineBase",
    "EngineSettings",
    "GpuEngine",
    "ModelSection",
    "OpenAICompatibleEngine",
    "ProcessEngine",
    "Quota",
    "Settings",
    "SettingsError",
    "SglangEngine",
    "Timeouts",
    "TransformersEngine",
    "VllmEngine",
    "Warmup",
    "load_settings",
]
