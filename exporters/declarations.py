"""What each tracker can store, as data that needs none of their packages.

Entry points of the group `otel_tracking_declarations` name these; the classes have them as `declaration`.
"""

from __future__ import annotations

from typing import Final

from otel_tracking.capabilities import (
    Declaration,
    Feature,
    File,
    Folder,
    Netrc,
    Server,
    Switch,
    changed,
    exact,
    not_stored,
)
from otel_tracking.records import MediaKind

TENSORBOARD: Final = Declaration(
    title="TensorBoard",
    package="tensorboard",
    offline="never uses the network",
    stores="<run directory>",
    capabilities={
        Feature.VALUES: changed("rounded to 32-bit floats"),
        Feature.NON_FINITE: exact(),
        Feature.ORDER: exact("the default loader hides points before a lower step"),
        Feature.REPEATED: exact(),
        Feature.NEGATIVE: exact(),
        Feature.TIMES: exact("as doubles of seconds"),
        Feature.TEXT: exact(),
        Feature.CONFIG: changed("flat in the HParams tab, the first one only; whole as a text"),
        Feature.STATUS: exact("of runs with a config"),
        Feature.RESUME: exact(),
        Feature.REWIND: exact(),
        MediaKind.IMAGE: exact("without captions"),
        MediaKind.AUDIO: exact(),
        MediaKind.VIDEO: exact("GIFs as images that move; of others a text names the file"),
        MediaKind.TABLE: changed("a text, of up to 1,000 rows, without images"),
        MediaKind.HISTOGRAM: exact(),
        MediaKind.FIGURE: exact("as an image"),
        MediaKind.HTML: changed("a text"),
        MediaKind.ARTIFACT: changed("a text names the files"),
    },
)

# One service under two names: W&B takes the login of the second for the first.
_FORGE: Final = {"api.forge.coreweave.com": "api.wandb.ai", "forge.coreweave.com": "api.wandb.ai"}

WANDB: Final = Declaration(
    title="Weights & Biases",
    package="wandb",
    offline="WANDB_MODE=offline",
    switches=(Switch("WANDB_MODE", "offline|disabled|dryrun"),),
    credentials=("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"),
    credential_files=(Netrc(ports=True, aliases=_FORGE),),
    servers=(
        Server(
            variables=("WANDB_BASE_URL",),
            files=(
                File(("./wandb/settings",), r"^\s*base_url\s*[=:]\s*(\S+)"),
                File(
                    ("$WANDB_CONFIG_DIR/settings", "~/.config/wandb/settings"),
                    r"^\s*base_url\s*[=:]\s*(\S+)",
                ),
            ),
            default="https://api.forge.coreweave.com",  # since 0.31; before, api.wandb.ai
        ),
    ),
    folders=(Folder(("$WANDB_DIR",)), Folder(("$WANDB_CACHE_DIR",)), Folder(("$WANDB_DATA_DIR",))),
    needs_login=True,
    stores="<run directory>/wandb",
    capabilities={
        Feature.VALUES: exact(),
        Feature.NON_FINITE: exact(),
        Feature.ORDER: exact(),
        Feature.REPEATED: exact(),
        Feature.NEGATIVE: exact(),
        Feature.TIMES: exact("as doubles of seconds"),
        Feature.TEXT: exact(),
        Feature.CONFIG: exact("NaN and infinities as texts"),
        Feature.STATUS: exact(),
        Feature.RESUME: exact("offline: written again whole"),
        Feature.REWIND: not_stored(),
        MediaKind.IMAGE: exact("with boxes and masks"),
        MediaKind.AUDIO: changed("an artifact, unless the package soundfile is installed"),
        MediaKind.VIDEO: exact("GIF, MP4, WebM, OGG"),
        MediaKind.TABLE: exact(),
        MediaKind.HISTOGRAM: exact(),
        MediaKind.FIGURE: exact("as an image, or HTML"),
        MediaKind.HTML: exact(),
        MediaKind.ARTIFACT: exact(),
    },
)

MLFLOW: Final = Declaration(
    title="MLflow",
    package="mlflow",
    offline="never uses the network, unless MLFLOW_TRACKING_URI names a server",
    credentials=("MLFLOW_TRACKING_TOKEN", ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")),
    credential_files=(File(("~/.mlflow/credentials",), r"^\s*mlflow_tracking_password\s*[=:]\s*\S"), Netrc()),
    login_is_for="a server that asks for one",
    servers=(
        Server(
            variables=("MLFLOW_TRACKING_URI",),
            stores=True,
            folders=Switch("MLFLOW_ALLOW_FILE_STORE", "(?i:true|1)"),
        ),
    ),
    stores="<project_dir>/mlflow.db",
    capabilities={
        Feature.VALUES: exact("-0.0 is 0.0"),
        Feature.NON_FINITE: changed("NaN exact, infinities as the largest double"),
        Feature.ORDER: exact(),
        Feature.REPEATED: exact(),
        Feature.NEGATIVE: exact(),
        Feature.TIMES: changed("milliseconds, of equal points moved by some"),
        Feature.TEXT: exact("as artifacts"),
        Feature.CONFIG: exact("as params, and whole as config.json"),
        Feature.STATUS: exact(),
        Feature.RESUME: exact(),
        Feature.REWIND: not_stored(),
        MediaKind.IMAGE: exact("without captions; those that move as artifacts too"),
        MediaKind.AUDIO: exact("as an artifact"),
        MediaKind.VIDEO: exact("as an artifact"),
        MediaKind.TABLE: exact(),
        MediaKind.HISTOGRAM: changed(
            "a JSON artifact, and its quantiles as metrics, `<name>/histogram/mean` ..."
        ),
        MediaKind.FIGURE: exact("as an image, or HTML"),
        MediaKind.HTML: exact("as an artifact"),
        MediaKind.ARTIFACT: exact(),
    },
)

TRACKIO: Final = Declaration(
    title="Trackio",
    package="trackio",
    offline="never uses the network, unless `space_id` is given",
    credentials=("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
    credential_files=(
        File(
            (
                "$HF_TOKEN_PATH",
                "$HF_HOME/token",
                "$XDG_CACHE_HOME/huggingface/token",
                "~/.cache/huggingface/token",
            ),
            r"\S",
        ),
    ),
    login_is_for="`space_id`",
    folders=(
        Folder(
            (
                "$TRACKIO_DIR",
                "$HF_HOME/trackio",
                "$XDG_CACHE_HOME/huggingface/trackio",
                "~/.cache/huggingface/trackio",
            )
        ),
    ),
    stores="TRACKIO_DIR, else the cache of Hugging Face",
    capabilities={
        Feature.VALUES: exact(),
        Feature.NON_FINITE: exact(),
        Feature.ORDER: exact(),
        Feature.REPEATED: exact(),
        Feature.NEGATIVE: exact(),
        Feature.TIMES: exact(),
        Feature.TEXT: exact(),
        Feature.CONFIG: exact(),
        Feature.STATUS: changed("as `_Status` in the config, and an alert"),
        Feature.RESUME: exact(),
        Feature.REWIND: not_stored(),
        MediaKind.IMAGE: exact(),
        MediaKind.AUDIO: exact(),
        MediaKind.VIDEO: exact(),
        MediaKind.TABLE: exact(),
        MediaKind.HISTOGRAM: exact(),
        MediaKind.FIGURE: exact("as an image"),
        MediaKind.HTML: exact(),
        MediaKind.ARTIFACT: exact(),
    },
)

DVCLIVE: Final = Declaration(
    title="DVCLive",
    package="dvclive",
    offline="never uses the network, unless DVC Studio is set up",
    switches=(Switch("DVC_STUDIO_OFFLINE", "(?i:.*(1|y|yes|true).*)"),),
    credentials=("DVC_STUDIO_TOKEN", "STUDIO_TOKEN"),
    login_is_for="DVC Studio",
    servers=(Server(variables=("DVC_STUDIO_URL",), default="https://studio.datachain.ai"),),
    stores="<run directory>/dvclive",
    capabilities={
        Feature.VALUES: exact(),
        Feature.NON_FINITE: exact(),
        Feature.ORDER: exact(),
        Feature.REPEATED: exact(),
        Feature.NEGATIVE: exact(),
        Feature.TIMES: exact("in milliseconds"),
        Feature.TEXT: exact("as a file each"),
        Feature.CONFIG: exact(),
        Feature.STATUS: not_stored(),
        Feature.RESUME: exact(),
        Feature.REWIND: not_stored(),
        MediaKind.IMAGE: exact("without captions"),
        MediaKind.AUDIO: changed("a file"),
        MediaKind.VIDEO: changed("a file"),
        MediaKind.TABLE: changed("a CSV file"),
        MediaKind.HISTOGRAM: changed("a plot's JSON file"),
        MediaKind.FIGURE: exact("as an image"),
        MediaKind.HTML: changed("a file"),
        MediaKind.ARTIFACT: exact(),
    },
)

# `swanlab login` keeps the key and the server it is for in a file of its own.
_SWANLAB: Final = (
    ("./.swanlab/.netrc",),
    ("$SWANLAB_ROOT/.netrc", "$SWANLAB_SAVE_DIR/.netrc", "~/.swanlab/.netrc"),
)

SWANLAB: Final = Declaration(
    title="SwanLab",
    package="swanlab",
    offline="SWANLAB_MODE=offline",
    switches=(Switch("SWANLAB_MODE", "[\"']?(offline|local|disabled)[\"']?"),),
    credentials=("SWANLAB_API_KEY",),
    credential_files=tuple(Netrc(places, ports=True, any_machine=True) for places in _SWANLAB),
    servers=(
        Server(
            variables=("SWANLAB_API_HOST",),
            files=tuple(File(places, r"^\s*machine\s+(\S+)") for places in _SWANLAB),
            default="https://api.swanlab.cn",
            bare=True,
        ),
    ),
    needs_login=True,
    stores="<run directory>/swanlog",
    capabilities={
        Feature.VALUES: exact(),
        Feature.NON_FINITE: exact(),
        Feature.ORDER: exact(),
        Feature.REPEATED: not_stored("the first point of a step is kept"),
        Feature.NEGATIVE: not_stored("nor steps above 2^48"),
        Feature.TIMES: exact(),
        Feature.TEXT: exact(),
        Feature.CONFIG: changed("a None at the top is an empty mapping, infinities are texts"),
        Feature.STATUS: exact(),
        Feature.RESUME: exact("offline: written again whole"),
        Feature.REWIND: not_stored(),
        MediaKind.IMAGE: exact(),
        MediaKind.AUDIO: exact(),
        MediaKind.VIDEO: exact(),
        MediaKind.TABLE: changed("HTML, of up to 10,000 rows"),
        MediaKind.HISTOGRAM: changed("HTML, and its quantiles as series, `<name>/histogram/mean` ..."),
        MediaKind.FIGURE: exact("as an image, or HTML"),
        MediaKind.HTML: exact(),
        MediaKind.ARTIFACT: changed("HTML that names the files"),
    },
)

AIM: Final = Declaration(
    title="Aim",
    package="aim",
    offline="never uses the network, unless `repo` names a server",
    stores="<project_dir>/.aim",
    capabilities={
        Feature.VALUES: exact(),
        Feature.NON_FINITE: exact(),
        Feature.ORDER: exact("shown by step"),
        Feature.REPEATED: exact("the second and later ones under the context repetition"),
        Feature.NEGATIVE: exact("of media: stored as 0"),
        Feature.TIMES: exact("as doubles of seconds"),
        Feature.TEXT: exact(),
        Feature.CONFIG: exact(),
        Feature.STATUS: exact("as a parameter, and a tag"),
        Feature.RESUME: exact(),
        Feature.REWIND: not_stored(),
        MediaKind.IMAGE: exact(),
        MediaKind.AUDIO: exact("WAV, MP3, FLAC; others are artifacts"),
        MediaKind.VIDEO: changed("GIFs as images of the first frame; others as artifacts"),
        MediaKind.TABLE: changed("a text (CSV), without images"),
        MediaKind.HISTOGRAM: exact("of bins of one width; others are texts"),
        MediaKind.FIGURE: exact("as an image"),
        MediaKind.HTML: changed("a text"),
        MediaKind.ARTIFACT: exact(),
    },
)

_CLEARML: Final = ("$CLEARML_CONFIG_FILE", "~/clearml.conf")
# Any other word is true to ClearML, a version number too.
_NOT_FALSE: Final = "(?i:(?!(?:n|no|f|false|off|0)$).+)"

CLEARML: Final = Declaration(
    title="ClearML",
    package="clearml",
    offline="CLEARML_OFFLINE_MODE=1",
    switches=(Switch("CLEARML_OFFLINE_MODE", _NOT_FALSE), Switch("TRAINS_OFFLINE_MODE", _NOT_FALSE)),
    credentials=(("CLEARML_API_ACCESS_KEY", "CLEARML_API_SECRET_KEY"), "CLEARML_AUTH_TOKEN"),
    credential_files=(File(_CLEARML, r"^[^#\n]*secret_key[\"']?\s*[=:]\s*[\"']?[^\s\"']"),),
    servers=(
        Server(
            variables=("CLEARML_API_HOST", "TRAINS_API_HOST"),
            files=(File(_CLEARML, r"^[^#\n]*api_server[\"']?\s*[=:]\s*[\"']?([^\s\"',}]+)"),),
            default="https://api.clear.ml",
        ),
    ),
    folders=(Folder(("$CLEARML_CACHE_DIR", "$TRAINS_CACHE_DIR", "~/.clearml/cache")),),
    needs_login=True,
    stores="the server; offline CLEARML_CACHE_DIR/offline",
    capabilities={
        Feature.VALUES: exact(),
        Feature.NON_FINITE: not_stored(),
        Feature.ORDER: exact(),
        Feature.REPEATED: exact(),
        Feature.NEGATIVE: exact(),
        Feature.TIMES: exact("in milliseconds"),
        Feature.TEXT: exact("as debug samples"),
        Feature.CONFIG: exact("as hyperparameters, and whole as a configuration object"),
        Feature.STATUS: exact("offline as a parameter"),
        Feature.RESUME: exact("offline: written again whole"),
        Feature.REWIND: not_stored(),
        MediaKind.IMAGE: exact("without captions"),
        MediaKind.AUDIO: exact(),
        MediaKind.VIDEO: exact(),
        MediaKind.TABLE: exact("as a plot"),
        MediaKind.HISTOGRAM: exact("as a plot"),
        MediaKind.FIGURE: exact("as an image, or HTML"),
        MediaKind.HTML: exact(),
        MediaKind.ARTIFACT: exact("as `<name>/<step>-<position>`, several files as a zip"),
    },
)

_COMET: Final = (
    ("$COMET_CONFIG",),
    ("$COMET_CONFIG/.comet.config",),
    ("./.comet.config",),
    ("~/.comet.config",),
)

COMET_ML: Final = Declaration(
    title="Comet",
    package="comet_ml",
    offline="COMET_START_ONLINE=0",
    switches=(Switch("COMET_START_ONLINE", "(?i:0|false|no)"),),
    credentials=("COMET_API_KEY",),
    credential_files=(
        File(("./.env",), r"^\s*(?:export\s+)?COMET_API_KEY\s*=\s*\S"),
        *(File(places, r"^\s*api_key\s*[=:]\s*\S") for places in _COMET),
    ),
    servers=(
        Server(
            variables=("COMET_URL_OVERRIDE",),
            files=(
                File(("./.env",), r"^\s*(?:export\s+)?COMET_URL_OVERRIDE\s*=\s*[\"']?([^\s\"']+)"),
                *(File(places, r"^\s*url_override\s*[=:]\s*(\S+)") for places in _COMET),
            ),
            default="https://www.comet.com",
            elsewhere=Switch("COMET_API_KEY", r"[^*]+\*.+"),  # such a key names its server, encoded
        ),
    ),
    needs_login=True,
    stores="<run directory>/comet",
    capabilities={
        Feature.VALUES: exact(),
        Feature.NON_FINITE: changed("as texts"),
        Feature.ORDER: exact(),
        Feature.REPEATED: exact(),
        Feature.NEGATIVE: exact(),
        Feature.TIMES: exact("in milliseconds"),
        Feature.TEXT: exact(),
        Feature.CONFIG: exact("as parameters, and whole as config.json"),
        Feature.STATUS: exact("as otel_tracking.status, and a tag"),
        Feature.RESUME: exact("offline: written again whole"),
        Feature.REWIND: not_stored(),
        MediaKind.IMAGE: exact(),
        MediaKind.AUDIO: exact(),
        MediaKind.VIDEO: exact(),
        MediaKind.TABLE: changed("a CSV asset"),
        MediaKind.HISTOGRAM: changed("with Comet's bins"),
        MediaKind.FIGURE: exact("as an image"),
        MediaKind.HTML: changed("an asset"),
        MediaKind.ARTIFACT: exact("as assets"),
    },
)
