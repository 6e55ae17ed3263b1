# Written from the table in __init__.py by `python -m tests.face`.

from layersync_core.capture.buffer import HiddenStateBuffer as HiddenStateBuffer
from layersync_core.capture.layout import BlockStack as BlockStack
from layersync_core.capture.layout import ForwardCall as ForwardCall
from layersync_core.capture.layout import ModelLayout as ModelLayout
from layersync_core.capture.layout import latent_grid as latent_grid
from layersync_core.cli.meta import build_on_meta as build_on_meta
from layersync_core.cli.options import add_command as add_command
from layersync_core.config import BlockNumber as BlockNumber
from layersync_core.config import LayerSyncConfig as LayerSyncConfig
from layersync_core.config import Steps as Steps
from layersync_core.config import Weight as Weight
from layersync_core.config import not_boolean as not_boolean
from layersync_core.config import validate as validate
from layersync_core.distributed import several_ranks as several_ranks
from layersync_core.errors import AdapterNotInstalledError as AdapterNotInstalledError
from layersync_core.errors import CaptureError as CaptureError
from layersync_core.errors import ConfigError as ConfigError
from layersync_core.errors import LayerSyncError as LayerSyncError
from layersync_core.errors import LayerSyncWarning as LayerSyncWarning
from layersync_core.errors import UnknownFamilyError as UnknownFamilyError
from layersync_core.errors import UnsupportedFamilyError as UnsupportedFamilyError
from layersync_core.families.adapter import BlockStackAdapter as BlockStackAdapter
from layersync_core.families.registry import find_model_config as find_model_config
from layersync_core.families.registry import get_adapter as get_adapter
from layersync_core.families.registry import list_families as list_families
from layersync_core.families.registry import load_tiny as load_tiny
from layersync_core.families.registry import provider as provider
from layersync_core.families.registry import read_model_config as read_model_config
from layersync_core.families.registry import resolve as resolve
from layersync_core.files import read_json as read_json
from layersync_core.files import replace_file as replace_file
from layersync_core.losses.alignment import alignment_loss as alignment_loss
from layersync_core.losses.hookspecs import hookimpl as hookimpl
from layersync_core.losses.pairing import suggest_pair as suggest_pair
from layersync_core.protocol import Adapter as Adapter
from layersync_core.protocol import Block as Block
from layersync_core.protocol import CaptureHandle as CaptureHandle
from layersync_core.protocol import Modality as Modality
from layersync_core.protocol import Regularizer as Regularizer
from layersync_core.protocol import States as States
from layersync_core.protocol import Term as Term
from layersync_core.protocol import Tiny as Tiny
from layersync_core.replacing import wrap_once as wrap_once
from layersync_core.session import Attachment as Attachment
from layersync_core.session import attach as attach
from layersync_core.session import plugins as plugins
from layersync_core.spelling import canonical as canonical
from layersync_core.spelling import is_on as is_on
from layersync_core.spelling import overlay as overlay
from layersync_core.spelling import taken_for_the_hosts as taken_for_the_hosts
from layersync_core.spelling import unknown_key as unknown_key

__version__: str
FACE: dict[str, tuple[str, ...]]
