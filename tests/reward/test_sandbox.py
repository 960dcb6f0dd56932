"""Rules may hang, crash, print and leave: the caller gets a cause, and the next call a process that works."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from penstock.reward import wire
from penstock.reward.config import RewardSection, RuleSection
from penstock.reward.sandbox import RewardError, Sandbox


@pytest.fixture
def sandbox(folder):
    made = []

    def make(*names, timeouts=None, args=None, workers=1, **changes):
        limits = dict.fromkeys(names, 30.0) | (timeouts or {})
        rules = {n: RuleSection(rule=f"mine:{n}", timeout=limits[n], args=args or {}) for n in names}
        made.append(Sandbox(RewardSection(rules=rules, folder=str(folder), workers=workers, **changes)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def call(part, completions=("a", "b"), columns=None, prompt="p", parts=None):
    ids = [[1] * len(c) for c in completions]
    return wire.Call(part, prompt, list(completions), ids, columns or {}, parts or {})


def test_a_function_in_trls_signature_works_as_it_is(sandbox):
    box = sandbox("same")
    assert box.call(call("same", ["4", "5"], {"answer": "4", "other": [1]})) == [1.0, 0.0]


def test_a_function_for_conversations_works_as_it_is(sandbox):
    prompt = [{"role": "user", "content": "2+2"}]
    request = wire.Call("same_chat", prompt, [[{"role": "assistant", "content": "4"}]], [[1]], {"answer": "4"}, {})
    assert sandbox("same_chat").call(request) == [1.0]


def test_a_function_without_kwargs_gets_only_what_it_names(sandbox):
    assert sandbox("no_kwargs").call(call("no_kwargs", ["abc", "a"], {"answer": 1})) == [3.0, 1.0]


def test_an_async_function_is_awaited(sandbox):
    assert sandbox("later").call(call("later")) == [0.25, 0.25]


def test_every_column_comes_once_per_completion(sandbox):
    assert sandbox("seen").call(call("seen", ["a", "b", "c"], {"tags": ["t"]})) == [3.0, 3.0, 3.0]


def test_completions_do_not_share_the_values_of_a_column(sandbox):
    assert sandbox("spoil").call(call("spoil", ["a", "b"], {"tags": ["t"]})) == [2.0, 1.0]


def test_arguments_of_the_run_file_reach_the_function(sandbox):
    assert sandbox("by_args", args={"scale": 0.5}).call(call("by_args")) == [0.5, 0.5]


def test_what_is_no_finite_number_is_a_cause_of_its_own_and_none_abstains(sandbox):
    entries = sandbox("mixed").call(call("mixed", ["x"] * 7))
    assert entries == [
        1.0,
        None,
        "returned nan, which is no finite number",
        "returned inf, which is no finite number",
        "returned '2' (str), which is no number",
        1.0,
        "ValueError: odd",
    ]


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("short", "must return one entry for each of 2 completions, returned 1"),
        ("nothing", "must return a list with 2 entries, returned NoneType"),
        ("boom", "ValueError: no such planet (mine.py line "),
        ("leave", "SystemExit: 3"),
        ("wrong_name", "needs the argument 'anwser', and there are answer, prompts"),
    ],
)
def test_a_failing_function_gives_its_cause_and_keeps_its_process(sandbox, name, cause, children):
    box = sandbox(name)
    before = children()
    entries = box.call(call(name, columns={"answer": 1}))
    assert len(entries) == 2
    assert all(str(entry).startswith(cause) for entry in entries), entries
    assert children() == before
    assert box.restarts.total() == 0


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("die", "the rule process ended with exit code 3; it last printed: about to go"),
        ("segfault", "the rule process was killed by SIGSEGV"),
        ("killed", "the rule process was killed by SIGKILL (out of memory?)"),
    ],
)
def test_a_crash_is_a_cause_and_the_process_is_replaced(sandbox, name, cause, children):
    box = sandbox(name, "same")
    (before,) = children()
    assert box.call(call(name)) == [cause, cause]
    assert box.call(call("same", ["4"], {"answer": "4"})) == [1.0]
    (after,) = children()
    assert after != before
    assert box.restarts == {name: 1}


@pytest.mark.parametrize("name", ["sleep", "backtrack"])
def test_a_hang_is_killed_at_its_timeout_also_where_it_holds_the_interpreter(sandbox, name):
    box = sandbox(name, "same", timeouts={name: 0.5})
    began = time.monotonic()
    assert box.call(call(name)) == ["timed out after 0.5 s"] * 2
    assert time.monotonic() - began < 5
    assert box.call(call("same", ["4"], {"answer": "4"})) == [1.0]


def test_what_a_hanging_rule_started_is_killed_with_it(sandbox, folder):
    box = sandbox("grandchild", timeouts={"grandchild": 2.0})
    box.call(call("grandchild"))
    pid = int((folder / "grandchild.pid").read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"process {pid} outlived the rule that started it"
        time.sleep(0.02)


def test_printing_does_not_corrupt_the_conversation(sandbox):
    box = sandbox("noisy")
    assert box.call(call("noisy")) == [1.0, 1.0]
    assert box.call(call("noisy")) == [1.0, 1.0]


def test_a_memory_limit_makes_a_memory_error_of_greed(sandbox):
    (entry, _) = sandbox("greedy", memory_gb=4.0).call(call("greedy"))
    assert str(entry).startswith("MemoryError")


def test_the_environment_is_hidden_unless_the_run_file_names_it(sandbox, monkeypatch):
    monkeypatch.setenv("PENSTOCK_TEST_SECRET", "s3")
    assert sandbox("secrets").call(call("secrets", ["a"])) == [0.0]
    assert sandbox("secrets", environment=("PENSTOCK_TEST_SECRET",)).call(call("secrets", ["a"])) == [1.0]


def test_a_large_group_goes_through(sandbox):
    completions = [str(i) * 100_000 for i in range(8)]
    assert sandbox("same").call(call("same", completions, {"answer": "x"})) == [0.0] * 8


def test_calls_run_side_by_side_on_several_processes(sandbox, children):
    box = sandbox("later", workers=3)
    found = []
    threads = [threading.Thread(target=lambda: found.append(box.call(call("later")))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [[0.25, 0.25]] * 12
    assert len(children()) <= 3


def test_no_process_outlives_close_not_even_one_with_threads(sandbox, children):
    box = sandbox("thread", workers=2)
    box.call(call("thread"))
    assert children()
    box.close()
    assert not children()
    box.close()


def test_close_ends_a_call_in_progress(sandbox, children):
    box = sandbox("sleep", timeouts={"sleep": 60.0})
    errors = []

    def work():
        try:
            box.call(call("sleep"))
        except RewardError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.3)
    box.close()
    thread.join(10)
    assert errors == ["the scorer was closed while it judged"]
    assert not children()


def test_rule_processes_end_when_their_owner_is_killed(folder):
    program = (
        "import sys, time\n"
        "from penstock.reward.config import RewardSection, RuleSection\n"
        "from penstock.reward.sandbox import Sandbox\n"
        "import psutil\n"
        f"box = Sandbox(RewardSection(rules={{'s': RuleSection(rule='mine:backtrack')}}, folder={str(folder)!r}))\n"
        "print(psutil.Process().children()[0].pid, flush=True)\n"
        "from penstock.reward import wire\n"
        "box.call(wire.Call('s', 'p', ['a'], [[1]], {}, {}))\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    rule_process = int(owner.stdout.readline())
    time.sleep(0.3)
    owner.kill()
    owner.wait(10)
    owner.stdout.close()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(rule_process) and psutil.Process(rule_process).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the rule process outlived its owner"
        time.sleep(0.02)


def descriptors():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_descriptors_are_given_back(sandbox):
    before = descriptors()
    box = sandbox("die")
    for _ in range(5):
        box.call(call("die"))
    box.close()
    assert descriptors() == before


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("exakt", "reward 'part': cannot import the rule 'exakt': there is no rule 'exakt'; built in are "),
        ("mine:sam", "has no 'sam'; did you mean 'same'?"),
        ("mine:not_a_function", "'mine:not_a_function' is a int, not a function"),
        ("nowhere:f", "ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_a_rule_that_cannot_be_had_is_refused_at_the_start(folder, rule, text, children):
    with pytest.raises(RewardError) as caught:
        Sandbox(RewardSection(rules={"part": RuleSection(rule=rule)}, folder=str(folder)))
    assert text in str(caught.value)
    assert not children()


def test_an_argument_the_rule_does_not_have_is_refused_with_the_nearest(folder):
    rules = {"exact": RuleSection(args={"colum": "x"})}
    with pytest.raises(RewardError, match=r"it has no argument 'colum'.*did you mean 'column'"):
        Sandbox(RewardSection(rules=rules, folder=str(folder)))


def test_a_module_that_hangs_while_it_is_imported_is_given_up(folder, children):
    (folder / "slow.py").write_text("import time\ntime.sleep(60)\n")
    section = RewardSection(rules={"s": RuleSection(rule="slow:f")}, folder=str(folder), start_timeout=1.0)
    with pytest.raises(RewardError, match=r"importing slow:f: timed out after 1\.0 s"):
        Sandbox(section)
    assert not children()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    section = RewardSection(rules={"exact": RuleSection()}, folder=str(tmp_path / "gone"))
    with pytest.raises(RewardError, match=r"cannot start a rule process in .*gone"):
        Sandbox(section)


def test_a_rule_process_imports_nothing_heavy():
    code = "import sys, penstock.reward.child; print([m for m in sys.modules if '.' not in m])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy = ("torch", "transformers", "numpy", "pydantic", "datasets", "math_verify", "sympy", "ray", "redis")
    assert not [name for name in heavy if f"'{name}'" in loaded]
