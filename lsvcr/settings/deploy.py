"""Settings of what leads out of the laboratory."""

from dataclasses import dataclass
from typing import Literal

from lsvcr.settings.fields import option


@dataclass
class ExportSettings:
    """Settings of `lsvcr export`."""

    checkpoint: str = option(
        "",
        "run folder of stage two, or of `lsvcr train sasrec`, `bert4rec` or `hllm_light`, or its best/ or last/",
    )
    other: str = option("", "one for the other task; empty = the bundle answers one task")
    data: str = option("", "prepared dataset that they were trained on")
    out: str = option("", "bundle folder to write; an earlier bundle there is replaced")
    rows: Literal["float32", "float16", "int8"] = option(
        "float32", "how the vectors of videos and comments are stored"
    )
    quantize: Literal["none", "int8"] = option(
        "none",
        "int8: the encoder computes in 8 bits, and --rows is int8; what that costs is measured and told",
    )
    with_users: bool = option(
        False, "add every user's histories and liked videos, so that a request may name a user: personal data"
    )
    text_encoder: bool = option(
        False,
        "add an encoder for titles and comments that come later, fitted to the text vectors of the dataset",
    )
    ann_from: int = option(
        2_000_000, "videos from which an approximate index answers (its recall is measured); 0 = never"
    )
    verify_rows: int = option(
        0,
        "test samples that the bundle must answer as the checkpoint does before it is put in place; 0 = all",
    )


@dataclass
class RecommendSettings:
    """Settings of `lsvcr recommend`."""

    bundle: str = option("", "folder that `lsvcr export` wrote")
    user: str = option("", "a user whose histories the bundle holds")
    history: str = option(
        "",
        'histories as JSON, or @FILE with it: {"video_history": [id, ...], "comment_history": [{"video": id, '
        '"comments": [id, ...]}, ...]}, oldest first',
    )
    video: str = option("", "rank the comments of this video instead of recommending videos")
    k: int = option(10, "how many")
    exclude_seen: bool = option(True, "videos that the user liked, or liked comments of, are left out")
    input: str = option("", "file with one request as JSON a line, for many at a time")
    output: str = option("", "with --input: file that receives one answer as JSON a line")
    threads: int = option(1, "processor threads")
    verify: bool = option(True, "compare the checksum of every file of the bundle first")
    json: bool = option(False, "print one JSON object instead of a table")


@dataclass
class ServeSettings:
    """Settings of `lsvcr serve`."""

    bundle: str = option("", "bundle folder, as `lsvcr export` writes it")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 = every network of the machine")
    port: int = option(8000, "port to listen on; 0 = a free one, which the first log line tells")
    allowed_hosts: str = option(
        "",
        "names that a request's Host may have besides localhost and --host, separated by commas; empty = no others on "
        "a loopback address, any on another",
    )
    state: str = option(
        "", "folder that keeps the changes of the catalogue; empty = they end with the process"
    )
    admin_token_file: str = option(
        "",
        "file with the token of the admin routes; empty = LSVCR_ADMIN_TOKEN; without either there are no such routes",
    )
    verify: bool = option(True, "compare the bundle's files with their checksums before serving")
    processes: int = option(
        1,
        "processes that answer at one port; more than 1 take no changes of the catalogue (SIGHUP exchanges bundles)",
    )
    threads: int = option(1, "threads of one run: of the encoder and of the product with the items")
    workers: int = option(2, "runs at a time, each in a thread of its own")
    batch_size: int = option(64, "histories that one encoder run takes at most")
    batch_wait_ms: float = option(
        0.0, "how long an idle worker waits for company; 0 = requests wait only while all workers are busy"
    )
    queue: int = option(2048, "histories that may wait, in each process; beyond it 503 with Retry-After")
    request_timeout: float = option(5.0, "seconds after which a request that is not answered gets 504")
    client_timeout: float = option(10.0, "seconds a client may take to send a request, or to take an answer")
    keep_alive: float = option(75.0, "seconds an idle connection stays open")
    graceful_timeout: float = option(30.0, "seconds that requests in work have to end after SIGTERM")
    max_connections: int = option(
        10_000, "connections at a time, of each process; further ones get 503 at once"
    )
    max_body_bytes: int = option(1 << 20, "bytes of a request's body")
    max_history: int = option(1000, "entries of a history, and comments in all of its visits together")
    max_k: int = option(1000, "items of one answer")
    max_batch: int = option(256, "queries of one request")
    max_candidates: int = option(10_000, "ids in candidates, in exclude, or in comments to rank")
    access_log: bool = option(True, "one line a request")
    log_format: Literal["text", "json"] = option("json", "lines on stderr")
