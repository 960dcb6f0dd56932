"""The tables of docs/bad-input.md that are about run files: every row is given to `penstock check`.

`make bad-input` writes the page with what is really said; `test_bad_input` compares the two.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tiny
import typer

from penstock.cli.main import check
from penstock.deploy.checks.context import Stage

PAGE = Path(__file__).parents[2] / "docs/bad-input.md"
BEGIN, END = "<!-- made by make bad-input: {} -->", "<!-- end -->"

RUN_FILE = """\
name: sums
model: {path: model}
data: {sources: {train: {path: train.jsonl}}}
evaluation: {data: {sources: {held_out: {path: held_out.jsonl}}}}
reward: {rules: {exact: {}}}
rollout: {sampling: {max_tokens: 16}}
engine: {max_model_len: 64, kv_cache_gib: 0.01}
limits: {steps: 50}
"""
ROW = '{"prompt": "2+2=", "answer": "4"}\n'
RULES = {
    "mine.py": "import nothing_like_it\n\ndef score(completions, **kwargs): ...\n",
    "broken.py": "def score(:\n",
    "good.py": "LIMIT = 3\n\ndef score(completions, answr): ...\n\ndef same(): ...\n",
}
_OFFSETS = json.dumps({"w": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]}}).encode()
WEIGHTS = {
    "cut short": struct.pack("<Q", len(_OFFSETS)) + _OFFSETS + b"0" * 100,
    "no safetensors": b"\x10\x00\x00",
    "a Git LFS note": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 400\n",
}


@dataclass(frozen=True)
class Row:
    """One row: what is given, in words, and how it is given."""

    what: str
    overrides: tuple[str, ...] = ()
    text: str | bytes | None = None
    """The run file, where it is not the good one."""
    files: dict[str, str | bytes] = field(default_factory=dict)
    """Written beside it."""
    stage: Stage = "train"
    model: Callable[[Path], object] | None = None
    """Damages a copy of the model, which the run file then names."""


def _data(what: str, name: str, content: str | bytes, *more: str) -> Row:
    """A training file that is bad."""
    return Row(what, (f"data.sources.train.path={name}", *more), files={name: content})


def _set(what: str, *overrides: str, stage: Stage = "train") -> Row:
    return Row(what, overrides, stage=stage)


def _file(what: str, text: str | bytes) -> Row:
    return Row(what, text=text)


def _model(what: str, damage: Callable[[Path], object], *more: str) -> Row:
    return Row(what, ("model.path=other", *more), model=damage)


def _guards(what: str, guards: str, *more: str) -> Row:
    return Row(what, (f"guards={guards}", *more))


def _rule(what: str, rule: str, *more: str) -> Row:
    return Row(what, (f"reward.rules.exact.rule={rule}", *more), files=dict(RULES))


def _with(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _config(**changes: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def _without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


UP, DOWN = "{scale: lr, by: 2}", "{scale: lr, by: 0.5}"
ROWS: dict[str, list[Row]] = {
    "The run file as text": [
        _file("an empty file", ""),
        _file("a list", "- name: sums\n"),
        _file("a bracket that is not closed", "name: sums\nmodel: {path: model\ndata: 3\n"),
        _file("a colon in plain text", "name: sums: two\n"),
        _file("a quote that is not closed", "name: 'sums\n"),
        _file("a tab for indentation", "name: sums\nmodel:\n\tpath: model\n"),
        _file("a template's braces", "name: {{ name }}\n"),
        _file("a tag", RUN_FILE + "seed: !!python/name:os.system\n"),
        _file("an alias that contains itself", "name: &a [*a]\n"),
        _file("two documents", RUN_FILE + "---\nname: two\n"),
        _file("a key that stands twice", RUN_FILE + "name: two\n"),
        _file("two sources with one name", "data: {sources: {train: {path: a}, train: {path: b}}}\n"),
        _file("a number as a key", RUN_FILE + "3: sums\n"),
        _file("UTF-16", RUN_FILE.encode("utf-16")),
        _file("Latin-1", (RUN_FILE + "# é\n").encode("latin-1")),
        _file("a character that is none", RUN_FILE + "# \x00\n"),
    ],
    "Keys": [
        _set("a misspelt key", "learner.learning_rat=1e-5"),
        _set("a misspelt section", "limts.steps=3"),
        _set("a key of nowhere", "learner.bananas=1"),
        _set("a key of the right name in the wrong section", "rollout.temperature=1"),
        _set("another library's name", "rollout.num_generations=8"),
        _set("the beginning of a name", "learner.schedule.warmup=10"),
        _set("the beginning of two names", "checkpoints.keep=3"),
        _set("a misspelt key of the section below", "rollout.temprature=1"),
        _set("capitals", "LIMITS.STEPS=3"),
        _set("sampling, where answers are measured", "evaluation.sampling={temprature: 1}"),
        _set("a key below a plain value", "name.x=3"),
        _set("a plain value for a section", "limits=50"),
        _set("a list for named sections", "reward.rules=[exact]"),
        _set("no rules", "reward.rules={}"),
        _set("no reward", "reward=null"),
        _set("`rewards: []`", "rewards=[]"),
        _set("an override without a value", "limits.steps"),
        _set("an override that is no YAML", "learner.betas=[0.9"),
        _set("an entry that the list lacks", "goals.3.metric=reward/mean"),
    ],
    "Values": [
        _set("a word for a number", "learner.epochs=two"),
        _set("`true` for a number", "learner.epochs=true"),
        _set("a number that is too small", "learner.learning_rate=-1"),
        _set("one number where two are needed", "learner.betas=[0.9]"),
        _set("infinity", "learner.learning_rate=.inf"),
        _set("a weight of NaN", "reward.rules.exact.weight=.nan"),
        _set("a negative max_lag", "staleness.max_lag=-1"),
        _set("a word that is no choice", "model.dtype=float16"),
        _set("an unknown algorithm", "algorithm.name=grop"),
        _set("a name that names no folder", "name=my run"),
        _set("a metric that nobody records", "goals.0={metric: reward/maen, at_least: 1}"),
        _set("a password in the url", "store.url=redis://:hunter2@host:6379/0"),
        _set("a url without a scheme", "store.url=localhost:6379"),
        _set("a port that is none", "store.url=redis://host:99999/0"),
        _set("a database that is no number", "store.url=redis://host:6379/main"),
    ],
    "Values that contradict each other": [
        _set("a group of one with GRPO", "rollout.group_size=1"),
        _set("a batch that cannot be divided", "learner.groups_per_step=10", "learner.mini_batches=3"),
        _set("more mini-batches than groups", "learner.mini_batches=64"),
        _set("more ranks than answers", "learner.ranks=300"),
        _set("an answer longer than the engine", "rollout.sampling.max_tokens=64"),
        _set("a prompt as long as the engine", "data.max_prompt_tokens=100000"),
        _set("a prompt and an answer that fit one by one", "data.max_prompt_tokens=50"),
        _set("an evaluation's answer longer than the engine", "evaluation.max_tokens=200"),
        _set("an engine longer than the model", "engine.max_model_len=256"),
        _set("an answer longer than the model", "engine.max_model_len=256", "rollout.sampling.max_tokens=130"),
        _set("more scorers than the most", "reward.scorers=3", "reward.max_scorers=2"),
        _set("a goal that nothing can reach", "goals.0={metric: reward/mean, at_least: 2, at_most: 1}"),
        _set("an accuracy that is no rule", "reward.accuracy=exat"),
        _set("no rule with a weight", "reward.rules.exact.weight=0"),
        _set("several mistakes at once", "learner.learning_rat=1", "rollout.group_size=1", "model.path=./modle"),
    ],
    "Guards": [
        _guards("a preset that is none, in a list", "[safe, sfae]"),
        _guards("one guard without a list", "{when: actor/entropy > 1, do: warn}"),
        _guards("a condition that is none", "[{when: actor/entropy is 1, do: warn}]"),
        _guards("a name that is none", "[{name: a b, when: actor/entropy > 1, do: warn}]"),
        _guards("an address that is none", "[{when: actor/entropy > 1, do: {webhook: ftp://host}}]"),
        _guards("a misspelt action, behind a preset", "[safe, {when: actor/entropy > 1, do: {scal: lr}}]"),
        _guards("a word as a key", "[{when: actor/entropy > 1, do: {pause: true}}]"),
        _guards(
            "two that pull both ways",
            f"[{{when: actor/entropy > 1, do: {UP}}}, {{when: actor/entropy > 2, do: {DOWN}}}]",
        ),
    ],
    "Data": [
        _set("a missing file", "data.sources.train.path=trian.jsonl"),
        _data("an empty file", "empty.jsonl", ""),
        _set("a folder without data", "data.sources.train.path=model"),
        _data("another kind of file", "sums.csv", "prompt,answer\n"),
        _set("a missing column", "data.sources.train.columns.prompt=promt"),
        _set("a column to keep that is missing", "data.sources.train.keep=[answr]"),
        _set("no column of answers, to fine-tune", "limits.steps=9", stage="sft"),
        _data("a column that one row lacks", "lacks.jsonl", ROW + '{"question": "1+1=", "answer": "2"}\n'),
        _data("a row that is not text", "number.jsonl", '{"prompt": 3, "answer": "4"}\n'),
        _data("a column of two types", "types.jsonl", ROW + '{"prompt": 3, "answer": "4"}\n'),
        _data("an empty prompt", "nothing.jsonl", ROW + '{"prompt": "", "answer": "4"}\n'),
        _data("messages, and no chat template", "chat.jsonl", '{"prompt": [{"role": "user", "content": "2+2="}]}\n'),
        _data("a line that is cut", "cut.jsonl", ROW + '{"prompt": "2+2='),
        _data("a key twice in a line", "twice.jsonl", '{"prompt": "2", "prompt": "3", "answer": "4"}\n'),
        _data("a line nested too deeply", "deep.jsonl", '{"prompt": "2", "answer": ' + "[" * 3000 + "]" * 3000 + "}\n"),
        _set("a link that leads back to itself, for data", "data.sources.train.path=round"),
        _data("one JSON list for lines", "list.jsonl", f"[{ROW.strip()}]\n"),
        _data("UTF-16", "wide.jsonl", ROW.encode("utf-16")),
        _data("Latin-1", "latin.jsonl", ROW.encode() + '{"prompt": "é", "answer": "4"}\n'.encode("latin-1")),
        _data("a damaged Parquet file", "rows.parquet", b"PAR1 and no more"),
        _data(
            "a prompt longer than allowed",
            "long.jsonl",
            ROW + json.dumps({"prompt": "1" * 40, "answer": "4"}) + "\n",
            "data.max_prompt_tokens=10",
        ),
        _data("a prompt longer than the engine", "longer.jsonl", ROW + json.dumps({"prompt": "1" * 99, "answer": "4"})),
    ],
    "Models and tokenizers": [
        _set("a directory that is none", "model.path=./modle"),
        _set("a file", "model.path=train.jsonl"),
        _model("no weights", _without("model.safetensors")),
        _model("weights cut short", _with("model.safetensors", WEIGHTS["cut short"])),
        _model("weights that are none", _with("model.safetensors", WEIGHTS["no safetensors"])),
        _model("Git LFS's note for weights", _with("model.safetensors", WEIGHTS["a Git LFS note"])),
        _model(
            "a part that is missing",
            _with("model.safetensors.index.json", b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'),
        ),
        _model("a damaged configuration", _with("config.json", b"{oops")),
        _model("a model that writes no text", _config(architectures=["BertModel"])),
        _model("a word and a null for numbers of a model", _config(max_position_embeddings="long", vocab_size=None)),
        _model("a model of no positions", _config(max_position_embeddings=0)),
        _model("one architecture without a list", _config(architectures="LlamaForCausalLM")),
        _model("architectures that are no names", _config(architectures=[3])),
        _model("a kind of model that transformers lacks", _config(model_type="lama")),
        _set("a link that leads back to itself, for a model", "model.path=round"),
        _model("a damaged tokenizer", _with("tokenizer.json", b"{oops")),
        _model("a tokenizer without its tokens", _with("tokenizer.json", b"{}")),
        _model("no tokenizer", _without("tokenizer.json"), "model.tokenizer=./tokens"),
        _model("a tokenizer with more tokens than the model", _config(vocab_size=10)),
        _set("a chat template that is demanded and missing", "data.chat_template=always"),
        _set("a chat template that is no file", "model.chat_template=chat.jinja"),
        _set("a chat template behind such a link", "model.chat_template=round"),
        _set("a chat template that is no Jinja", "model.chat_template='{% for m in messages %}'"),
    ],
    "Rewards": [
        _rule("a rule that is none", "exakt"),
        _rule("a module that is none", "mien:score"),
        _rule("a function that is none", "good:scor"),
        _rule("what is no function", "good:LIMIT"),
        _rule("a file's name", "good.py:score"),
        _rule("a dot for the colon", "good.score"),
        _rule("a module that does not parse", "broken:score"),
        _rule("a module that imports what is not there", "mine:score"),
        _rule("an argument that nobody gives", "good:score"),
        _rule("a function without arguments", "good:same"),
        _set("a pattern that is none", "reward.rules.exact={rule: regex, args: {pattern: '('}}"),
        _set("a negative tolerance", "reward.rules.exact={rule: numeric, args: {tolerance: -1}}"),
        _set("a word for true or false", "reward.rules.exact.args.case=no"),
        _set("an accuracy that no earlier part has", "reward.rules.long={rule: length, args: {accuracy: exat}}"),
        _set("an argument that the rule has not", "reward.rules.exact.args={colunm: answer}"),
        _set("a column that the data has not", "reward.rules.exact.args.column=anwser"),
        Row(
            "a column that the held-out data has not",
            ("evaluation.data.sources.held_out.path=bare.jsonl",),
            files={"bare.jsonl": '{"prompt": "2+2="}\n'},
        ),
    ],
    "This machine": [
        _set("a runs_dir that is a file", "runs_dir=train.jsonl"),
        _set("a runs_dir behind a link that leads back to itself", "runs_dir=round/runs"),
        _set("a folder of weights behind such a link", "weights.folder=round/weights"),
        _set("a folder of rules behind such a link", "reward.folder=round"),
        _set("a GPU that is not there", "placement.device=cuda"),
        _set("a store that nobody serves", "store.url=redis://127.0.0.1:1/0"),
        _set("a Ray cluster that is none", "placement.ray_address=127.0.0.1:1"),
    ],
}


def make_home(folder: Path) -> Path:
    """The folder that every row is tried in."""
    tiny.tokenizer().save_pretrained(folder / "model")
    tiny.save_weightless(folder / "model")
    for name in ("train.jsonl", "held_out.jsonl"):
        (folder / name).write_text(ROW)
    (folder / "round").symlink_to("round")
    return folder


def lines_of(row: Row, home: Path) -> tuple[list[str], int]:
    """What `penstock check` prints of errors for `row`, without what differs between machines, and its exit code."""
    file = home / "run.yaml"
    text = RUN_FILE if row.text is None else row.text
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    for name, content in row.files.items():
        (home / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if row.model is not None:
        shutil.rmtree(home / "other", ignore_errors=True)
        shutil.copytree(home / "model", home / "other")
        row.model(home / "other")
    printed, code = io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        try:
            check(Path("run.yaml"), list(row.overrides), row.stage)
        except typer.Exit as ended:
            code = ended.exit_code
    said = [line for line in printed.getvalue().splitlines() if ": error: " in line]
    return [_everywhere_alike(line, home) for line in said], code


def _everywhere_alike(line: str, home: Path) -> str:
    for folder in (f"{home}/", f"{home.resolve()}/"):
        line = line.replace(folder, "")
    line = re.sub(r"for \d+\.\d s \((.*?) is [\d.]+ s\)", r"for 2.6 s (\1 is 3 s)", line)
    return line.replace(str(home), ".")


def table(home: Path) -> Iterator[str]:
    """The page's tables, one for each subject."""
    for subject, rows in ROWS.items():
        yield f"### {subject}\n"
        yield "| what is given | what is said |"
        yield "|---|---|"
        for row in rows:
            yield markdown(row, lines_of(row, home)[0])
        yield ""


def markdown(row: Row, said: list[str]) -> str:
    """One row of the page."""
    lines = " <br> ".join(f"`` {shortened(line)} ``".replace("|", "\\|") for line in said)
    return f"| {row.what} | {lines} |"


def shortened(line: str) -> str:
    """Without the long lists of keys that are allowed."""
    return re.sub(r"(allowed: \w+, \w+, \w+)(, [\w]+){4,}", r"\1, …", line)


def main() -> None:
    """Write the page anew."""
    import os
    import tempfile

    import bad_while_running as running

    with tempfile.TemporaryDirectory() as folder:
        home = make_home(Path(folder).resolve())
        os.chdir(home)
        page = put_in(PAGE.read_text(), "check", "\n".join(table(home)))
        head = "| what is the matter | what is said |\n|---|---|\n"
        for of, rows in (("rules", running.rewards(home)), ("store", running.stores(home))):
            page = put_in(page, of, head + "\n".join(rows) + "\n")
        PAGE.write_text(page)


def put_in(page: str, of: str, text: str) -> str:
    """The page with `text` in the part `of`."""
    begin = BEGIN.format(of)
    return page.partition(begin)[0] + f"{begin}\n\n{text}{END}" + page.partition(begin)[2].partition(END)[2]


def part(of: str) -> list[str]:
    """The lines of that part of the page."""
    return PAGE.read_text().partition(BEGIN.format(of))[2].partition(END)[0].splitlines()


if __name__ == "__main__":
    main()
