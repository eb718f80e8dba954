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
from serving.settings.places import config_file, routing_file

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
    "config_file",
    "load_settings",
    "routing_file",
]
