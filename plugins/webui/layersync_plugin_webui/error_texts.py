"""The command line's errors about settings, as texts with placeholders.

LayerSync and pydantic write errors in English; ``error_matching`` finds the text of this table that matches one and
fills its translation in. An error of several statements, joined by ``; ``, is matched statement by statement.
``plugins/webui/tests/test_error_texts.py`` goes through the sources and fails for an error that is not here.
"""

from __future__ import annotations

# Longer than others: one table, in the order of the sources.

# The name of a placeholder says what it may match: see ``error_matching``. The first text that matches counts.
_PYDANTIC = (
    "input should be a valid boolean, unable to interpret input",
    "input should be a valid boolean",
    "input should be a valid integer, unable to parse string as an integer",
    "input should be a valid integer, got a number with a fractional part",
    "unable to parse input string as an integer, exceeded maximum size",
    "input should be a valid integer",
    "input should be a valid number, unable to parse string as a number",
    "input should be a valid number",
    "input should be a finite number",
    "input should be a valid list",
    "input should be a valid string, unable to parse raw data as a unicode string",
    "input should be a valid string",
    "input should be greater than or equal to %(limit)s",
    "input should be greater than %(limit)s",
    "input should be less than or equal to %(limit)s",
    "input should be less than %(limit)s",
    "input should be %(choices)s",
)

_LAYERSYNC = (
    "a boolean is not a number",
    "it is N for the first N tokens, -N for the last N",
    "leave it out where all are generated",
    "expected a JSON list such as [[8, 16], [4, 12, 0.1]]",
    "layersync_pairs and layersync_student_block or layersync_teacher_block exclude each other",
    "keep one of the two ways",
    "layersync_pairs is empty",
    "give at least one [student, teacher]",
    "it is required when %(name)s is enabled, for example 8 with layersync_teacher_block 16 for 24 to 28 blocks",
    "layersync_tokens all counts every token, so layersync_generated_tokens would do nothing",
    "%(key)s is %(value)s, which is not after %(other)s %(second)s: the term would be cut off before it has its weight",
    "%(name)s has no switch: a field called <prefix>_enabled",
    "the weight of the pair %(value)s in layersync_pairs is %(second)s; it must be finite and greater than 0 "
    "in single precision (the default is 0.2; layersync_enabled: false switches LayerSync off)",
    "%(key)s is %(value)s; it must be finite and greater than 0 in single precision (the default is 0.2; "
    "layersync_enabled: false switches LayerSync off)",
    "single precision takes it for 0 or infinity",
    "give a number that it keeps, such as 0.1",
    "give each level once",
    "layersync_pairs has the pair %(value)s twice",
    "give it once, with one weight",
    "layersync_pairs has %(value)s; each pair is [student, teacher] or [student, teacher, weight], blocks as whole "
    "numbers from 0",
    "layersync_pairs has %(value)s; its weight is not a number",
    "LayerSync could not find layer %(value)s (the student block): the model has %(count)s blocks",
    "LayerSync could not find layer %(value)s (the teacher block): the model has %(count)s blocks",
    "valid are 1 to %(limit)s, and 0 for the first",
    "student %(block)s has width %(value)s and teacher %(second_block)s has width %(second)s",
    "a pair needs the same width and stage",
)

_SPELLING = (
    "unknown setting %(setting)s",
    "did you mean %(key)s or %(other)s?",
    "did you mean %(key)s?",
    "known: %(names)s",
    "%(names)s would be read as LayerSync's only beside loss_type: layer_sync",
    "%(setting)s is a section, and settings in it would do nothing",
    "write them beside the other keys, as %(names)s",
    "setting %(value)s is not text",
    "settings are names such as layersync_enabled",
    "%(key)s is %(value)s; the value that switches LayerSync on is layer_sync",
    "%(key)s is %(value)s and %(other)s is %(second)s: two spellings of one setting with different values",
    "%(key)s is %(value)s and %(other)s is %(second)s: two spellings of %(third)s with different values",
    "%(key)s is inside a section, where it would do nothing",
    "write it beside the outermost keys: %(why)s",
    "the setting is %(key)s: false",
    "the setting is %(key)s",
)

_RUN = (
    "no settings were given, so LayerSync would do nothing",
    "add --layersync_enabled true --layersync_student_block N --layersync_teacher_block N, or --config FILE with them",
    "%(key)s is not set",
    "give it the settings as JSON or the path of a file with them, or start the program with layersync run",
    "the settings cannot be passed on as JSON: %(failure)s",
    "the settings cannot be passed on in %(path)s: %(failure)s",
    "layersync_suggest needs to know the blocks, which family auto finds only at the first loss: give an adapter file "
    "that it wrote (layersync_save_adapter, or layersync inspect MODEL --inputs FILE --save FILE)",
    "layersync_save_adapter writes what layersync_family auto finds",
    "give that as well",
)

_TRAINER = (
    "lr_warmup_steps has no effect with lr_scheduler constant",
    "add lr_scheduler constant_with_warmup",
    "compare sets LayerSync against a vanilla arm, but layersync_enabled is false",
)

_CREPA = (
    "it is required when %(name)s is enabled, for example 8 (the first block is 0)",
    "the paper takes an early one",
    "%(names)s are both true: two feature sources",
    "keep one of the two keys",
    "crepa_feature_source is %(value)s and %(key)s is %(second)s: two feature sources",
    "%(setting)s is not supported: it takes a further forward of an EMA teacher on a cleaner input in every step, "
    "which only the trainer can run",
    "use encoder or backbone",
    "crepa_teacher_block_index is for backbone features, but the feature source is encoder",
    "set crepa_feature_source: backbone, or leave it out",
    "crepa_pixels is for the encoder, but the feature source is backbone",
    "set crepa_feature_source: encoder, or leave it out",
    "crepa_pixels is missing: the encoder needs the clean clip's pixels",
    "set it to the key under which the batches of the data loader have them, or to module:function, which gets the "
    "batch and returns them",
    "crepa_feature_source: backbone needs none",
    "crepa_similarity_threshold is %(value)s, and with these neighbours crepa_alignment_score is from %(least)s to "
    "%(most)s, so it would be reached never or at once",
    "crepa_decay_steps is %(value)s, the step at which the decay ends",
    "it must come after crepa_warmup_steps %(value)s",
    "%(key)s is for Self-Flow, which is not supported",
    "use feature source encoder or backbone",
    "%(key)s decodes latents with a tiny autoencoder in SimpleTuner",
    "here nothing is decoded, and crepa_pixels says where the clip's pixels are",
    "%(key)s frees the encoder of SimpleTuner's VAE",
    "here the VAE is the program's own, and CREPA does not touch it",
    "leave it out",
)

_TWINFLOW = (
    "twinflow_allow_diff2flow bridges models that predict noise, but layersync train trains every model by "
    "flow matching",
    "%(key)s has no effect without the adversarial loss",
    "add twinflow_adversarial_enabled: true",
    "twinflow_require_ema is false, so there would be no teacher",
    "add twinflow_allow_no_ema_teacher: true, which makes the model its own teacher, or leave it out",
    "twinflow_require_ema and twinflow_allow_no_ema_teacher are both true: one asks for a moving average of the "
    "weights, the other for none",
    "twinflow_ema_decay has no effect with twinflow_allow_no_ema_teacher",
    "keep one of the two",
)

_PLUGINS = (
    "%(key)s is set, but objective %(name)s replaces the main loss, which attach() and layersync run leave to the "
    "program",
    "objective %(name)s replaces the main loss, which attach() and layersync run leave to the program",
    "only layersync train can run it: use that, or switch it off",
    "%(key)s is set, but its plugin is not installed, and only layersync train can run it: pip install %(package)s",
    "plugin %(name)s is switched on, but it fails: %(failure)s",
    "%(key)s is set, but plugin %(name)s brings no regularizer, so it would do nothing",
    "%(key)s is set, but its plugin is not installed: pip install %(package)s",
    "%(key)s is set, but plugin %(name)s cannot be used: %(failure)s",
    "%(key)s is set, but LAYERSYNC_LOAD leaves out plugin %(name)s",
    "add it there",
    "two regularizers are called %(names)s",
    "uninstall one of their plugins, or leave it out with LAYERSYNC_LOAD",
    "objectives %(names)s are enabled, and each would replace the main loss",
    "switch all but one of them off",
)

_FAMILIES = (
    "%(name)s: family auto finds blocks and tokens in a forward, which this command does not run",
    "layersync inspect MODEL --inputs FILE.safetensors --save adapter.json does, and the file it writes is a family",
    "LayerSync does not support %(models)s (family %(family)s): %(why)s",
    # Why: the refused families.
    "a UNet with a ChatGLM conditioning path, whose hidden states are not exposed for LayerSync",
    "its joint text-image sequence has no stable view of the image tokens",
    "a convolutional UNet without a stream of transformer tokens",
    "declared unsupported",
    "it shares the video model's class, and a configuration that fits no released video model counts as image: name "
    "the family kandinsky5_video if it is one",
    "text and image share one causal sequence",
    "family %(family)s is claimed by %(names)s",
    "uninstall all but one of them",
    "the adapter of family %(family)s is not installed",
    "the adapter of family %(family)s is installed but LAYERSYNC_LOAD leaves it out",
    "add %(key)s to it",
    "the adapter of family %(family)s (%(package)s) cannot be imported: %(failure)s",
    "unknown family %(value)s",
    "installed families: %(names)s",
    "to add one see %(path)s",
    "no adapter knows the model class %(name)s",
    "not usable: %(why)s",
    "the config has no _class_name, so its family is unknown",
    "name it with family=…",
    "%(name)s is claimed by %(names)s",
    "uninstall all but one, or name the family",
    "%(package)s isn't an adapter: %(name)s is a class",
    "register an instance of it",
    "%(package)s isn't an adapter: %(name)s lacks %(names)s",
    "%(package)s isn't an adapter: %(names)s of %(name)s isn't a method",
    "%(package)s isn't an adapter: model_classes of %(name)s is %(value)s",
    "expected a tuple of class names",
    "%(package)s isn't an adapter: %(failure)s",
    "see %(path)s",
    "%(package)s is written for adapter API %(value)s, this layersync-core for %(second)s",
    "install versions of both that match",
    "%(package)s registers family %(family)s but its adapter says %(name)s",
    "the two must agree",
    "family %(family)s: %(package)s ships no tiny model",
    "write %(name)s with tiny_model() and example_inputs(model, batch_size), see %(path)s",
    "family %(family)s: %(name)s needs newer versions of what it imports: %(failure)s",
    "family %(family)s: %(name)s of %(package)s cannot be imported: %(failure)s",
    "family %(family)s: %(name)s needs %(package)s",
    "this UNet2DConditionModel is %(models)s (addition_embed_type %(value)s)",
    "of that class only SDXL's ('text_time') has transformers of several blocks for a student and a deeper teacher: "
    "those of the others are one block deep, if there are any",
    "this %(name)s has norm_type %(value)s, as the parts of UNets have",
    "DiT and PixArt have %(names)s",
)

_FILES = (
    "cannot read %(path)s: %(failure)s",
    "the folder %(path)s has no config.json (nor transformer/, unet/, prior/ or model/ with one)",
    "%(path)s does not exist",
    "give a local model folder or its config.json",
    "download a model of the hub first: hf download %(name)s --local-dir FOLDER",
    "%(name)s isn't a local path, and asking the hub for it needs huggingface_hub",
    "%(name)s is neither a local path nor a possible name of a model on the hub",
    "check it, or give a local model folder or its config.json",
    "%(name)s on %(address)s has none of %(names)s",
    "%(name)s isn't a local path, its config is not in the cache %(path)s, and %(why)s",
    # Why: what the hub said.
    "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids fetching it",
    "unset it, or give a local model folder or its config.json",
    "the model is gated: accept its terms on %(address)s and run hf auth login, or give a local model folder or its "
    "config.json",
    "%(address)s has no such model or does not show it",
    "check the name, and run hf auth login for a private or gated one",
    "the cache cannot be written (%(failure)s)",
    "set HF_HOME to another folder, or give a local model folder or its config.json",
    "%(address)s cannot be reached (%(failure)s)",
    "check the network, or give a local model folder or its config.json",
    "%(address)s answers %(limit)s",
    "run hf auth login, or give a local model folder or its config.json",
    "check the name, or give a local model folder or its config.json",
    "try again later, or give a local model folder or its config.json",
    "%(path)s is not valid JSON (YAML and TOML are recognised by .yaml, .yml and .toml): %(failure)s",
    "%(path)s is not valid %(kind)s: %(failure)s",
    "%(path)s does not hold valid JSON: %(failure)s",
    "%(path)s holds a %(kind)s; expected an object of settings",
    "%(path)s has the key %(value)s twice",
    "reading %(path)s needs %(package)s",
    "pip install %(package)s, or write the settings as JSON",
    "pip install %(package)s",
)

_MODELS = (
    "%(path)s is neither a local path nor a family (a model on the hub is named owner/name)",
    "the tiny model of family %(family)s cannot be built: %(failure)s",
    "building %(name)s from its config needs diffusers",
    "%(name)s is not a class of diffusers %(version)s, so it cannot be built from its config",
    "check it from Python with attach(model, config)",
    "diffusers cannot build %(name)s from this config: %(failure)s",
    "diffusers %(version)s has no class %(name)s, so this folder cannot be loaded here",
    "%(name)s has no gradient checkpointing",
    "leave gradient_checkpointing out",
    "%(name)s has no linear layers in its blocks, so there is nothing for LoRA",
    "the weights in %(path)s cannot be loaded: %(failure)s",
    "the weights in %(path)s are not those of its config: %(count)s are missing, such as %(name)s",
    "report_to is %(value)s, which accelerate cannot use here",
    "guidance_scale has no effect: %(name)s has no null class here",
    "mixed_precision %(key)s: %(failure)s",
)

# The page's own errors.
_JOBS = (
    "the run has no name",
    "give one",
    "the name of the run has %(count)s characters",
    "give one of at most %(limit)s",
    "%(value)s cannot be the name of a run",
    "give letters, digits, dashes and spaces between them",
    "a folder named %(value)s would not be shown as a run",
    "give a name that begins differently",
    "%(value)s is what the arms of a comparison are called",
    "give another name",
    "there is %(name)s below %(path)s already",
    "%(path)s cannot be made: %(failure)s",
    "%(path)s cannot be written, so nothing was started",
    "make room",
    "%(path)s is not a regular file",
    "remove it",
    "%(path)s is itself a run, so no other below it is shown",
    "give the page another --runs",
    "nothing can be started in %(path)s: %(failure)s",
    "%(key)s is the folder of the run, which its name says",
    "layersync train is not installed",
    "%(name)s is running",
    "stop it first",
    "%(name)s has no whole checkpoint of layersync train to go on from",
    "there is no command",
    "give the one that starts the training, as in a terminal",
    "the command cannot be split into words: %(failure)s",
    "close or escape it",
    "no shell reads the command, so %(key)s does not set a variable",
    "give %(key)s as a variable",
    "no shell reads the command, so %(value)s would be a word for its program",
    "give the folder in its own field and one program, or bash -c '...' around it all",
    "%(name)s has a character that no command line can have",
    "%(key)s cannot be written as a flag: %(failure)s",
    "%(path)s is not a folder",
    "give the one that the command is to run in",
    "%(path)s has no bin/python",
    "give the folder of a Python environment, as ~/trainer/.venv",
    "%(path)s has no layersync",
    "%(path)s -m pip install layersync-core",
    "%(path)s does not start: %(failure)s",
    "give another environment",
    "%(value)s cannot be the name of a variable",
    "give letters, digits and underscores",
    "%(name)s of the environment variables has a value but no name",
    "give it one",
)

_SETTINGS_FILES = (
    "%(path)s has %(count)s characters",
    "%(path)s has %(count)s bytes",
    "a file of settings has at most %(limit)s",
    "%(path)s is %(kind)s, which cannot be changed without losing comments",
    "export the settings as JSON",
    "%(setting)s: not a setting of LayerSync or a plugin, so it stays as it is",
    "%(setting)s cannot be changed in %(path)s",
    "change it there by hand",
    "%(key)s cannot be written as JSON: %(failure)s",
    "%(setting)s holds half a character (a lone surrogate), which isn't text",
    "%(path)s is nested too deeply: %(failure)s",
)

# The least specific ones come last.
_OPEN = (
    "%(names)s given without %(key)s, so it would do nothing",
    "add %(key)s: true, or false to switch %(name)s off",
    "%(setting)s would do nothing",
    "keep one",
    "%(key)s is missing",
    "%(key)s is %(value)s: %(why)s",
    "%(key)s: %(why)s",
)

ERRORS = (
    *(*_PYDANTIC, *_LAYERSYNC, *_SPELLING, *_RUN, *_TRAINER),
    *(*_CREPA, *_TWINFLOW, *_PLUGINS, *_FAMILIES, *_FILES, *_MODELS, *_JOBS, *_SETTINGS_FILES, *_OPEN),
)
"""Texts of errors, without a full stop, in the order in which they are tried."""
