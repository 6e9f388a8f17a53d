"""The only place for names: tasks, splits, columns, files and the padding index."""

from enum import Enum

PAD = 0
"""Index 0 is padding in every id space; row i of a table holds index i + 1."""

COLD_BELOW = 5
"""A video or comment with fewer interactions that training may know of is cold."""

FORMAT_VERSION = 1
"""Version of the prepared dataset's layout; a reader refuses any other."""


class Task(str, Enum):
    """What is ranked: the next video, or the comments of the video being watched."""

    REC = "rec"
    COMM_RANK = "comm_rank"

    @classmethod
    def parse(cls, text: str) -> "Task":
        """Accept the reference's spelling (`Rec`, `CommRank`) and ours (`rec`, `comm_rank`)."""
        key = text.replace("_", "").replace("-", "").lower()
        names = {"rec": cls.REC, "commrank": cls.COMM_RANK}
        if key not in names:
            raise ValueError(f"unknown task {text!r}: use Rec or CommRank")
        return names[key]

    @property
    def label(self) -> str:
        """The reference's spelling, used in tables and file names a person reads."""
        return {"rec": "Rec", "comm_rank": "CommRank"}[self.value]


class Split(str, Enum):
    """The three parts of every dataset."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


MANIFEST_FILE = "manifest.json"
USERS_FILE = "users.parquet"
VIDEOS_FILE = "videos.parquet"
COMMENTS_FILE = "comments.parquet"

RAW_ID = "raw_id"
TITLE = "title"
CONTENT = "content"
CATEGORY = "category"
AUTHOR = "author"
LIKES = "likes"
VIDEO = "video"
COMMENT = "comment"
USER = "user"
TIME = "time"
"""Event times are int64 Unix milliseconds everywhere after the sources."""

VIDEO_EMBEDDINGS_FILE = "photo_embs.npy"
COMMENT_EMBEDDINGS_FILE = "comment_embs.npy"
VIDEO_FULL_EMBEDDINGS_FILE = "photo_full_embs.npy"
COMMENT_FULL_EMBEDDINGS_FILE = "comment_full_embs.npy"
VIDEO_KEYS_FILE = "photo_keys.npy"
COMMENT_KEYS_FILE = "comment_keys.npy"
ITEM_EMBEDDINGS_FILE = "item_embs.npy"
ITEM_KEYS_FILE = "item_keys.npy"
EMBEDDINGS_MANIFEST_FILE = "embeddings.json"
EMBED_WORK_DIR = ".embed-work"
SR_WEIGHTS_FILE = "sr.safetensors"
ADAPTER_DIR = "adapter"
METRICS_FILE = "metrics.json"
METRICS_LOG_FILE = "metrics.jsonl"
TRAINER_FILE = "trainer.json"
BEST_DIR = "best"
LAST_DIR = "last"

LLM_FINGERPRINT = "llm_fingerprint"
"""In the manifest of a stage-one checkpoint, see `families.fingerprint`."""

STAGE_ONE = "stage-one"
STAGE_TWO = "stage-two"
"""`kind` in the manifests of the two stages' checkpoints."""

BASELINE = "baseline"
"""`kind` in the manifests of `lsvcr train`, whose `model` is the recommender's name."""

HLLM = "hllm"
"""`kind` in the manifests of `lsvcr hllm`."""
CLICKS = "clicks"
"""`kind` in the manifests of `lsvcr clicks`."""
