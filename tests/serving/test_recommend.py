"""`lsvcr recommend`: questions from the shell."""

import json
import subprocess
import sys

import pytest

from lsvcr.cli import main
from lsvcr.serving.requests import answer_file, answer_json, count_lines
from lsvcr.serving.runtime import Recommender
from tests.guards.test_import_cost import loaded_by
from tests.serving.bundles import make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "b"
    make_bundle(path, seed=4)
    return path


def ask(capsys, *words: object) -> tuple[int, str, str]:
    code = main(["recommend", *map(str, words)])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_a_user_of_the_bundle_as_json(bundle, capsys):
    code, out, _ = ask(capsys, bundle, "--user", 102, "--k", 3, "--json")
    answer = Recommender.load(bundle).recommend_user(102, k=3)
    assert code == 0 and json.loads(out) == answer_json(answer)
    code, out, _ = ask(capsys, bundle, "--user", 102, "--k", 99, "--exclude_seen", "False", "--json")
    assert len(json.loads(out)["items"]) == 40


def test_histories_as_json_and_from_a_file(bundle, capsys, tmp_path):
    history = {"video_history": [1007, "1014"], "comment_history": [{"video": 1007, "comments": [5]}, 10]}
    code, out, _ = ask(capsys, bundle, "--history", json.dumps(history), "--json")
    answer = Recommender.load(bundle).recommend(**history)
    assert code == 0 and json.loads(out) == answer_json(answer)
    (tmp_path / "h.json").write_text(json.dumps(history))
    assert ask(capsys, bundle, "--history", f"@{tmp_path / 'h.json'}", "--json")[1] == out


def test_the_comments_of_a_video(bundle, capsys):
    code, out, _ = ask(capsys, bundle, "--user", 102, "--video", 1007, "--k", 2, "--json")
    recommender = Recommender.load(bundle)
    videos, comments = recommender.histories(102)
    assert code == 0
    assert json.loads(out) == answer_json(recommender.rank_comments(videos, comments, 1007, k=2))


def test_a_table_for_a_person(bundle, capsys):
    code, out, err = ask(capsys, bundle, "--history", '{"video_history": [1007, "[bold]"]}', "--k", 2)
    first, second = Recommender.load(bundle).recommend([1007], k=2).items
    assert code == 0
    for item in (first, second):
        assert any(
            f"{item.id}" in line and f"{item.score:.4f}" in line and item.title in line
            for line in out.splitlines()
        )
    assert "1 videos that the bundle does not know were skipped: [bold]" in err


def test_many_requests_in_a_file(bundle, capsys, tmp_path):
    lines = [
        {"video_history": [1007], "k": 2},
        {"user": 101},
        {"user": "103", "video": 1014, "k": 1},
        {"video": 1007, "comments": [5, 10, 77]},
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    text = [json.dumps(line) for line in lines]
    source.write_text("\n".join([text[0], "", *text[1:]]))
    code, out, err = ask(capsys, bundle, "--input", source, "--output", target)
    assert code == 0 and out == "" and f"4 answers are in {target}" in err
    recommender = Recommender.load(bundle)
    videos, comments = recommender.histories(103)
    expected = [
        answer_json(recommender.recommend([1007], k=2)),
        {**answer_json(recommender.recommend_user(101)), "user": 101},
        {**answer_json(recommender.rank_comments(videos, comments, 1014, k=1)), "user": "103"},
        answer_json(recommender.rank_comments([], [], 1007, [5, 10, 77])),
    ]
    assert [json.loads(line) for line in target.read_text().splitlines()] == expected


def test_more_lines_than_are_read_at_once(bundle, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f'{{"user": {101 + n % 6}}}\n' for n in range(1200)))
    done: list[int] = []
    assert answer_file(Recommender.load(bundle), source, target, done.append) == 1200
    assert sum(done) == count_lines(source) == 1200 and len(done) > 1
    answers = target.read_text().splitlines()
    assert len(answers) == 1200 and answers[:6] == answers[600:606]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"user": 101, "k": 0}', "k is a whole number from 1 on, not 0"),
        (b'{"user": 999}', "no user 999 in this bundle"),
        (b'{"video": 5}', "no video 5 in this bundle"),
        (b'{"usr": 5}', "a request has no 'usr'; it may have candidates, comment_history, exclude"),
        (b"[1]", "a request is a JSON object, not [1]"),
        (b'{"user": ', "Expecting value"),
        (b'{"user": "\xff"}', "utf-8"),
        (b"[" * 100_000, "recursion"),
        (b'{"user": 101, "video_history": null}', "video_history is a list of ids, not NoneType"),
        (b'{"user": 101, "comment_history": 5}', "comment_history is a list, not int"),
        (b'{"video_history": ["\\ud800"]}', "an id has half of a surrogate pair, which is no character"),
        (b'{"user": "\\ud800"}', "an id has half of a surrogate pair"),
        (
            b'{"video_history": [' + b"[" * 500 + b"]" * 501 + b"}",
            "an id is a whole number or a text, not [[[[",
        ),
    ],
)
def test_a_broken_line_names_file_and_line_and_leaves_nothing(bundle, capsys, tmp_path, line, told):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b'{"user": 101}\n\n{"user": 102}\n' + line + b'\n{"user": 103}\n')
    target.write_text("what was there")
    code, _, err = ask(capsys, bundle, "--input", source, "--output", target)
    assert code == 2 and f"{source}, line 4: " in err and told in err and "nothing was written" in err
    assert target.read_text() == "what was there" and sorted(p.name for p in tmp_path.iterdir()) == [
        "in.jsonl",
        "out.jsonl",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "needs one of --user, --history and --input, not none of them"),
        (["--user", "101", "--history", "{}"], "not --user and --history"),
        (["--input", "x"], "--input and --output go together"),
        (["--user", "101", "--output", "x"], "--input and --output go together"),
        (["--input", "x", "--output", "y", "--video", "7"], "a request says itself which video"),
        (["--input", "/nowhere/x", "--output", "y"], "/nowhere/x cannot be read: No such file"),
        (["--history", "{"], "--history is not valid JSON"),
        (
            ["--history", '{"video_history": ' + "[" * 100_000],
            "--history is not valid JSON (maximum recursion",
        ),
        (["--history", '{"video_history": ["\\ud800"]}'], "an id has half of a surrogate pair"),
        (["--history", "[1]"], '--history is a JSON object such as {"video_history": [1, 2]}, not [1]'),
        (["--history", "@/nowhere/h"], "/nowhere/h cannot be read"),
        (["--history", '{"videos": [1]}'], "a request has no 'videos'; it may have"),
        (["--user", "999"], "no user '999' in this bundle"),
        (["--user", "101", "--video", "5"], "no video '5' in this bundle"),
    ],
)
def test_what_has_no_answer_is_told(bundle, capsys, words, told):
    code, out, err = ask(capsys, bundle, *words)
    assert code == 2 and out == "" and told in err


def test_no_bundle_is_told(capsys, tmp_path):
    assert ask(capsys)[2].startswith("error: lsvcr recommend needs --bundle, as in: lsvcr recommend")
    code, _, err = ask(capsys, tmp_path / "none", "--user", 1)
    assert code == 2 and "does not exist or is no folder; make one with `lsvcr export" in err


def test_it_loads_no_torch(bundle):
    code = f"import lsvcr.cli; lsvcr.cli.main(['recommend', {str(bundle)!r}, '--user', '101', '--json'])"
    loaded = loaded_by(code)
    assert "onnxruntime" in loaded
    assert not {"torch", "transformers", "polars", "pyarrow", "faiss", "onnx", "rich"} & loaded


def test_as_a_process(bundle):
    done = subprocess.run(
        [sys.executable, "-m", "lsvcr", "recommend", str(bundle), "--user", "101", "--k", "2", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(json.loads(done.stdout)["items"]) == 2 and done.stderr == ""
