"""Models survive the way to disk and back, and a path that holds none says what was looked for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from penstock.services.model_config import ModelError, ModelSection, locate
from penstock.services.model_facts import describe
from penstock.services.models import load_model, load_tokenizer, problems, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tiny.model(), tiny.tokenizer(chat=True), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def copy(folder, tmp_path):
    """A copy that a test may damage."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def section(path, **changes):
    return ModelSection(path=str(path), **changes)


def test_a_model_comes_back_as_it_was(folder):
    before, after = tiny.model().state_dict(), load_model(section(folder)).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_tied_output_layer_is_stored_once_also_from_a_gathered_state_dict(tmp_path):
    model = tiny.model()
    gathered = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_model(model, None, tmp_path / "m", gathered)
    assert "lm_head.weight" not in load_file(tmp_path / "m" / "model.safetensors")
    after = load_model(section(tmp_path / "m"))
    assert after.get_output_embeddings().weight is after.get_input_embeddings().weight


def test_an_untied_output_layer_is_kept(tmp_path):
    model = tiny.model(tie_word_embeddings=False)
    save_model(model, None, tmp_path / "m")
    assert torch.equal(load_model(section(tmp_path / "m")).lm_head.weight, model.lm_head.weight)


def test_the_number_format_is_the_sections_or_the_callers(folder):
    assert load_model(section(folder, dtype="bfloat16")).dtype == torch.bfloat16
    assert load_model(section(folder, dtype="bfloat16"), "float32").dtype == torch.float32


def test_saving_replaces_what_was_there_and_leaves_nothing_beside_it(tmp_path):
    save_model(tiny.model(seed=1), tiny.tokenizer(), tmp_path / "m")
    (tmp_path / "m" / "old").touch()
    save_model(tiny.model(seed=2), tiny.tokenizer(), tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert not (tmp_path / "m" / "old").exists()
    found = load_model(section(tmp_path / "m")).state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in tiny.model(seed=2).state_dict().items())


def test_the_tokenizer_comes_back_with_its_template_and_can_pad(folder):
    tokenizer = load_tokenizer(section(folder))
    assert tokenizer("12+3").input_ids == tiny.ids_of("12+3")
    assert tokenizer.pad_token_id == tiny.EOS
    assert tokenizer.chat_template == tiny.TEMPLATE


def test_a_template_of_the_section_replaces_the_tokenizers_own(folder, tmp_path):
    (tmp_path / "chat.jinja").write_text("{{ messages[0].content }}")
    by_text = load_tokenizer(section(folder, chat_template="{{ 1 }}"))
    by_file = load_tokenizer(section(folder, chat_template="chat.jinja").located(tmp_path))
    assert by_text.chat_template == "{{ 1 }}"
    assert by_file.chat_template == "{{ messages[0].content }}"


def test_a_tokenizer_elsewhere_is_used_where_the_section_says_so(folder, tmp_path):
    save_model(tiny.model(), None, tmp_path / "bare")
    assert load_tokenizer(section(tmp_path / "bare", tokenizer=str(folder))).eos_token == "[eos]"
    with pytest.raises(ModelError, match=r"is a directory without tokenizer\.json; .*model\.tokenizer"):
        load_tokenizer(section(tmp_path / "bare"))


def test_a_tokenizer_without_an_end_is_refused(copy):
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="no eos_token"):
        load_tokenizer(section(copy))


def test_weights_that_are_missing_are_not_made_up(copy):
    weights = load_file(copy / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensors are missing .* the first is 'model\.norm\.weight'"):
        load_model(section(copy))


def test_weights_that_are_damaged_are_named_with_their_folder(copy):
    (copy / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match=f"cannot load the weights of '{copy}'"):
        load_model(section(copy))


def test_a_path_that_does_not_exist_names_the_nearest_that_does(folder):
    with pytest.raises(ModelError) as caught:
        load_model(section(folder.parent / "tinny"))
    assert str(caught.value) == (
        f"'{folder.parent}/tinny' is not a directory with config.json; did you mean '{folder.parent}/tiny'?"
    )


def test_a_directory_above_the_model_says_where_the_model_is(folder):
    ((key, text),) = problems(section(folder.parent))
    assert key == "path"
    assert f"is a directory without config.json; it holds tiny; did you mean '{folder}'?" in text


def test_what_may_be_on_the_hub_is_no_problem_before_the_network_is_asked(folder):
    assert problems(section("Qwen/Qwen3-0.6B")) == []
    assert problems(section(folder)) == []
    assert [key for key, _ in problems(section(folder, tokenizer="./no/where"))] == ["tokenizer"]


def test_a_model_without_a_tokenizer_is_a_problem(copy):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert [key for key, _ in problems(section(copy))] == ["tokenizer"]


def test_a_hub_id_that_cannot_be_had_says_that_both_were_tried(monkeypatch):
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise OSError("the hub is far away\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(ModelError) as caught:
        load_model(section("someone/some-model"))
    text = str(caught.value)
    assert text.startswith("'someone/some-model' is not a directory with config.json, and as an id on the hub")
    assert "OSError: the hub is far away. Check" in text
    assert "HF_TOKEN" in text


def test_a_folder_wins_over_the_hub_and_paths_become_absolute(tmp_path):
    (tmp_path / "own" / "model").mkdir(parents=True)
    assert locate("own/model", tmp_path) == str(tmp_path / "own" / "model")
    assert locate("own/modle", tmp_path) == str(tmp_path / "own" / "modle")
    assert locate("Qwen/Qwen3-0.6B", tmp_path) == "Qwen/Qwen3-0.6B"
    assert locate("./x", tmp_path) == str(tmp_path / "x")


def test_facts_are_read_without_loading_weights(folder):
    facts = describe(str(folder))
    assert facts.architecture == "Qwen3ForCausalLM"
    assert facts.parameters == sum(p.numel() for p in tiny.model().parameters())
    assert facts.exact
    assert facts.vocab == len(tiny.CHARACTERS) + 2
    assert facts.tied_embeddings
    assert facts.max_positions == 128
    assert facts.kv_values_per_token == 2 * 2 * 1 * 16
    assert facts.eos_token_ids == (tiny.EOS,)


def test_parameters_are_estimated_where_the_weights_are_elsewhere(copy):
    (copy / "model.safetensors").unlink()
    facts = describe(str(copy))
    assert not facts.exact
    # Embedding + per layer q, o (32×32), k, v (32×16) and three 32×64 matrices; the norms are left out.
    assert facts.parameters == facts.vocab * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)


def test_facts_of_what_is_no_decoder_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["X"]}')
    with pytest.raises(ModelError, match="has no hidden_size, num_hidden_layers, vocab_size"):
        describe(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="names no `architectures`"):
        describe(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        describe(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("hidden_size", "x", 'hidden_size is "x", allowed is a whole number from 1 on'),
        ("vocab_size", None, "vocab_size is null"),
        ("num_attention_heads", 0, "num_attention_heads is 0"),
        ("num_key_value_heads", [2, 2], "num_key_value_heads is [2, 2], allowed is a whole number from 0 on"),
        ("max_position_embeddings", True, "max_position_embeddings is true"),
        ("eos_token_id", "x", 'eos_token_id is "x", allowed is a token\'s id'),
        ("text_config", 3, "text_config is 3, allowed is an object"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_with_its_key(copy, key, value, said):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ModelError) as told:
        describe(str(copy))
    assert said in str(told.value)


def test_what_a_configuration_may_leave_open_is_no_mistake(copy):
    config = json.loads((copy / "config.json").read_text())
    open_ones = dict.fromkeys(("num_key_value_heads", "head_dim", "max_position_embeddings", "eos_token_id"))
    (copy / "config.json").write_text(json.dumps(config | open_ones))
    found = describe(str(copy))
    assert (found.max_positions, found.eos_token_ids) == (0, ())


def test_a_name_too_long_for_a_file_is_told_and_not_looked_for(tmp_path):
    path = locate("x" * 300 + "/model", tmp_path)
    with pytest.raises(ModelError, match="File name too long"):
        describe(path)
    assert dict(problems(section(path)))["path"].endswith("File name too long")


def test_the_modules_of_models_and_data_import_nothing_heavy():
    code = "import sys, penstock.services.models, penstock.services.data; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "pyarrow", "huggingface_hub"} & set(loaded)
