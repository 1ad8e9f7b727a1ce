"""BERT by its recipe: the folder that transformers loads, and where its configuration is from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import case, needed, registry
from converter_plugins.bert import Bert
from converter_plugins.cast import Cast
from converter_plugins.drop import Drop
from converter_plugins.map import Map
from converter_plugins.rename import Rename
from reference_bert import ReferenceBert

from converter import (
    Checkpoint,
    InputError,
    PlanError,
    Strategy,
    UsageError,
    Variable,
    convert,
    open_checkpoint,
)
from converter.cli import cli
from converter.plan import make_plan
from converter.recipe import read_recipe, shipped_recipes
from converter.target import parse_target

pytestmark = pytest.mark.slow

BERT = case("tf115_v2_bert_mini")
PLAIN = Bert()
SOURCE = open_checkpoint(BERT.path)


def recipe(**changed: Mapping[str, object]) -> list[Strategy]:
    """Return the steps of the recipe, with other options for some of its plugins."""
    steps = [step.named(registry()) for step in read_recipe("bert-hf").steps]
    built = []
    for step in steps:
        values = {**step.values, **changed.get(step.plugin, {})}
        built.append(type(step)(step.plugin, values, step.where, step.directory).build(registry()))
    return built


def without_graph(directory: Path, config: object = None) -> Path:
    directory.mkdir(exist_ok=True)
    for file in BERT.directory.glob("bert_model.ckpt-200.[id]*"):
        shutil.copy(file, directory)
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (directory / "bert_config.json").write_text(text)
    return directory / "bert_model.ckpt-200"


def arrays() -> dict[str, Any]:
    with np.load(BERT.directory / "io.npz") as file:
        return {name: file[name] for name in file}


def configured(path: Path | str, strategy: Bert = PLAIN) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(strategy.beside(open_checkpoint(path)).files["config.json"])
    return found


PUBLISHED = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": 100,
}


# -- the folder ------------------------------------------------------------------------------------


def test_the_folder_computes_what_the_graph_did(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(cli, [BERT.path, "--recipe", "bert-hf", "-o", f"{tmp_path}/out/"])
    assert outcome.exit_code == 0, outcome.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    given = arrays()
    found = ReferenceBert(tmp_path / "out")(
        given["in_input_ids"], given["in_input_mask"], given["in_segment_ids"]
    )
    assert {f"out_{name}" for name in found} == {name for name in given if name[:4] == "out_"}
    for name, values in found.items():
        scale = np.abs(given[f"out_{name}"]).max()
        np.testing.assert_allclose(values, given[f"out_{name}"], rtol=0, atol=1e-5 * scale)
    assert "beside  config.json" in outcome.stdout
    assert open_checkpoint(tmp_path / "out").metadata == {"format": "pt"}


def test_nothing_but_the_optimizer_and_the_step_is_left_out(tmp_path: Path) -> None:
    source = SOURCE
    result = convert(source.path, tmp_path / "out", recipe())
    dropped = {name for name, role in source.roles().items() if role.kind != "model"}
    assert set(result.plan.dropped) == dropped
    for variable in open_checkpoint(tmp_path / "out").values():
        (change,) = [c for c in result.plan.changes if c.variable.name == variable.name]
        (old,) = change.sources
        values = old.read()
        is_kernel = old.name.endswith("/kernel")
        np.testing.assert_array_equal(variable.read(), values.T if is_kernel else values)


def test_a_scope_around_the_model_is_left_out() -> None:
    scoped = Rename({"((bert|cls)/.*)": r"module/\1"})
    plan = make_plan(SOURCE, [scoped, *recipe()])
    plain = make_plan(SOURCE, recipe())
    assert set(plan.result) == set(plain.result)
    assert plan.files == plain.files


def test_what_no_rule_fits_is_refused_with_the_nearest() -> None:
    odd = Rename({"bert/pooler/dense/kernel": "bert/pooler/dense/kernels"})
    source = SOURCE
    message = (
        r"bert/pooler/dense/kernels: no rule fits; the nearest is "
        r"'\(\?:\.\+/\)\?bert/pooler/dense/kernel'; add one"
    )
    with pytest.raises(PlanError, match=message):
        make_plan(source, [odd, *recipe()])
    kept = make_plan(source, [odd, *recipe(map={"rest": "keep"})])
    assert "bert/pooler/dense/kernels" in kept.result
    assert any("such as bert/pooler/dense/kernels" in note for note in kept.notes)
    dropped = make_plan(source, [odd, *recipe(map={"rest": "drop"})])
    assert dropped.dropped["bert/pooler/dense/kernel"] == "map"
    assert "bert/pooler/dense/kernels" not in dropped.result


def test_slots_that_stay_are_refused() -> None:
    steps = [step for step in recipe() if not isinstance(step, Drop)]
    with pytest.raises(PlanError, match=r"adam_m \(and 92 more\): no rule fits"):
        make_plan(SOURCE, steps)


# -- the configuration -----------------------------------------------------------------------------


def test_the_graph_tells_heads_and_activation() -> None:
    assert configured(BERT.path) == {
        "architectures": ["BertForPreTraining"],
        "hidden_act": "gelu_new",
        "hidden_size": 32,
        "intermediate_size": 64,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 64,
        "model_type": "bert",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "type_vocab_size": 2,
        "vocab_size": 100,
    }
    notes = list(Bert().notes(SOURCE))
    assert notes == [
        "the graph tells the number of attention heads, 2",
        "the graph computes the activation gelu_new, not gelu by erf",
    ]


def test_the_configuration_beside_the_checkpoint_is_read(tmp_path: Path) -> None:
    found = configured(without_graph(tmp_path, {**PUBLISHED, "layer_norm_epsilon": 1e-6}))
    assert found.items() >= PUBLISHED.items()
    assert found["layer_norm_eps"] == 1e-6
    assert "layer_norm_epsilon" not in found
    elsewhere = without_graph(tmp_path / "bare")
    config = tmp_path / "bert_config.json"
    assert configured(elsewhere, Bert(config=config)) == found


def test_options_win(tmp_path: Path) -> None:
    path = without_graph(tmp_path, PUBLISHED)
    found = configured(path, Bert(heads=4, act="relu"))
    assert (found["num_attention_heads"], found["hidden_act"]) == (4, "relu")
    assert configured(BERT.path, Bert(heads=8, act="gelu"))["hidden_act"] == "gelu"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "nothing tells how many attention heads it has; give --bert-heads"),
        ({}, "nothing tells how many attention heads it has"),
        ({"num_attention_heads": 3}, "3 heads cannot share a hidden size of 32"),
        ({"num_attention_heads": "2"}, '"2" heads cannot share'),
        ({"num_attention_heads": True}, "true heads cannot share"),
        ({"num_attention_heads": 0}, "0 heads cannot share"),
        ({**PUBLISHED, "hidden_size": 768}, "hidden_size is 768, and the variables have 32"),
        ({**PUBLISHED, "num_hidden_layers": 12}, "num_hidden_layers is 12, and the .* have 2"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(config: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=message):
        configured(without_graph(tmp_path, config))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it is no JSON; repair it"),
        ("[" * 100_000, "it is no JSON"),
        ("[1]", "it is no JSON object"),
        ("\xff", "it is no JSON"),
        (" " * (1 << 20) + "{}", "it has over 1048576 bytes"),
    ],
    ids=["cut", "deep", "list", "bytes", "long"],
)
def test_a_damaged_configuration_is_told(text: str, message: str, tmp_path: Path) -> None:
    path = without_graph(tmp_path)
    (tmp_path / "bert_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        configured(path)


def test_a_configuration_that_is_missing_is_told() -> None:
    with pytest.raises(InputError, match=r"none\.json: the configuration cannot be read: No such"):
        configured(BERT.path, Bert(config=Path("none.json")))
    with pytest.raises(UsageError, match="heads must be at least 1"):
        Bert(heads=0)


def test_the_graph_and_the_configuration_must_agree(tmp_path: Path) -> None:
    path = without_graph(tmp_path, {**PUBLISHED, "num_attention_heads": 4})
    shutil.copy(f"{BERT.path}.meta", tmp_path)
    with pytest.raises(PlanError, match=r"bert_config.json says 4, and the graph says 2; say wh"):
        configured(path)
    assert configured(path, Bert(heads=2))["num_attention_heads"] == 2
    (tmp_path / "bert_config.json").write_text(json.dumps({**PUBLISHED, "hidden_act": "relu"}))
    with pytest.raises(PlanError, match='says "relu", and the graph computes gelu_new; say which'):
        configured(path)
    # The same name meant another function in another year; the graph knows.
    (tmp_path / "bert_config.json").write_text(json.dumps(PUBLISHED))
    assert configured(path)["hidden_act"] == "gelu_new"


def test_other_models_are_no_bert(lstm: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="it is no BERT under the names of google-research"):
        make_plan(open_checkpoint(lstm), [Bert()])
    source = open_checkpoint(without_graph(tmp_path, PUBLISHED))
    gap = Rename({"(.*)/layer_1/(.*)": r"\1/layer_2/\2"})
    with pytest.raises(PlanError, match="of 3 layers 2 are there"):
        make_plan(source, [gap, Bert()])


@pytest.mark.parametrize(
    ("steps", "architecture", "more"),
    [
        ([], "BertForPreTraining", {}),
        ([Drop(("cls/seq*",))], "BertForMaskedLM", {}),
        ([Drop(("cls/*",))], "BertModel", {}),
        (
            [Drop(("cls/predictions/*",)), Rename({"cls/seq_relationship/(.*)": r"cls/squad/\1"})],
            "BertForQuestionAnswering",
            {},
        ),
        (
            [Drop(("cls/predictions/*",)), Rename({"cls/seq_relationship/(.*)": r"\1"})],
            "BertForSequenceClassification",
            {"num_labels": 2},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_architecture_follows_from_the_heads(
    steps: list[Strategy], architecture: str, more: dict[str, Any]
) -> None:
    plan = make_plan(SOURCE, [*steps, *recipe()])
    config = json.loads(plan.files["config.json"])
    assert config["architectures"] == [architecture]
    assert config.items() >= more.items()


# -- what lies beside the variables ----------------------------------------------------------------


def test_a_configuration_is_replaced_with_force_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("mine")
    with pytest.raises(PlanError, match=r"config\.json exists; use --force"):
        convert(BERT.path, out, recipe())
    assert [path.name for path in out.iterdir()] == ["config.json"]
    convert(BERT.path, out, recipe(), force=True)
    assert json.loads((out / "config.json").read_text())["hidden_size"] == 32
    with pytest.raises(PlanError, match=r"exists; use --force"):
        convert(BERT.path, out, recipe())


@pytest.mark.parametrize(("output", "to"), [("x.safetensors", None), ("tf/", "tf")])
def test_a_configuration_belongs_into_a_folder(output: str, to: str, tmp_path: Path) -> None:
    target = parse_target(f"{tmp_path}/{output}", name="x", to=to)
    plan = make_plan(SOURCE, recipe(), target)
    assert not plan.files
    assert any(note.startswith("config.json is left out") for note in plan.notes)


def test_shards_have_it_too(tmp_path: Path) -> None:
    result = convert(BERT.path, tmp_path / "out", recipe(), shard_size=70_000)
    names = sorted(path.name for path in result.files)
    assert names == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


# -- rules -----------------------------------------------------------------------------------------


def held(**shapes: tuple[int, ...]) -> Checkpoint:
    return Checkpoint(
        Variable.from_array(name, np.arange(np.prod(shape), dtype="f4").reshape(shape))
        for name, shape in shapes.items()
    )


def test_rules_are_tried_in_their_order() -> None:
    rules = Map(map={"a(.)": r"x\1", "(.*)": r"rest.\1"}, transpose={"ab": "never"})
    found = list(rules.apply(held(ab=(2, 3), c=(2,))))
    assert [(v.name, v.shape) for v in found] == [("xb", (2, 3)), ("rest.c", (2,))]


def test_a_transposed_matrix_in_parts() -> None:
    (found,) = Map(transpose={"k": "w"}).apply(held(k=(3, 4)))
    expected = np.arange(12, dtype="f4").reshape(3, 4).T
    np.testing.assert_array_equal(found.read(), expected)
    np.testing.assert_array_equal(found.read((slice(1, 3), slice(0, 2))), expected[1:3, 0:2])
    parts = [part.ravel() for part in found.blocks(8)]
    np.testing.assert_array_equal(np.concatenate(parts), expected.ravel())
    assert found.stored is None


def test_rules_that_cannot_be_meant() -> None:
    with pytest.raises(PlanError, match=r"b: it has the shape \[3\], and a rule transposes it"):
        list(Map(transpose={"b": "b"}).apply(held(b=(3,))))
    with pytest.raises(PlanError, match="x: both a and b would have this name"):
        list(Map(map={"[ab]": "x"}).apply(held(a=(3,), b=(3,))))
    with pytest.raises(PlanError, match="b: both a and b would have this name"):
        list(Map(map={"a": "b"}, rest="keep").apply(held(a=(3,), b=(3,))))
    with pytest.raises(UsageError, match="'a' is a rule of both map and transpose"):
        Map(map={"a": "b"}, transpose={"a": "c"})
    with pytest.raises(UsageError, match="at least one pattern is needed"):
        Map()
    with pytest.raises(UsageError, match="is no replacement"):
        list(Map(map={"a": r"\1"}).apply(held(a=(3,))))


def test_whose_layout_it_is_stands_in_the_metadata(tmp_path: Path) -> None:
    plain = Map(map={"(.*)": r"\1"}, rest="keep")
    assert plain.beside(held(a=(1,))) is None
    steps = [Cast("float16"), Map(map={"(.*)": r"x.\1"}, format="pt")]
    convert(case("tf221_raw_dtypes").path, tmp_path / "out", [*steps], sidecar=True)
    assert open_checkpoint(tmp_path / "out").metadata["format"] == "pt"


# -- recipes by name -------------------------------------------------------------------------------


def test_shipped_recipes_can_be_built() -> None:
    assert "bert-hf" in shipped_recipes()
    for name in shipped_recipes():
        read = read_recipe(name)
        assert read.summary
        assert [step.build(registry()) for step in read.steps]


def test_a_file_goes_before_a_shipped_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert-hf").write_text('summary = "mine"')
    assert read_recipe("bert-hf").summary == "mine"


def test_recipes_that_are_not_there() -> None:
    with pytest.raises(UsageError, match=r"bert-fh: no such file, .*; did you mean 'bert-hf'\?"):
        read_recipe("bert-fh")
    with pytest.raises(UsageError, match=r"xyz: no such file, .*; the package brings bert-hf"):
        read_recipe("xyz")
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_recipe("mine.toml")


def test_the_command_lists_and_prints_recipes() -> None:
    listed = CliRunner().invoke(cli, ["recipes"])
    assert f"bert-hf  {read_recipe('bert-hf').summary}\n" in listed.stdout
    printed = CliRunner().invoke(cli, ["recipes", "bert-hf"])
    assert printed.stdout == shipped_recipes()["bert-hf"].read_text()
    one = CliRunner().invoke(cli, ["recipes", "bert-hf", "--json"])
    (row,) = json.loads(one.stdout)["recipes"]
    assert row["plugins"] == ["drop", "bert", "map"]
    missing = CliRunner().invoke(cli, ["recipes", "bert"])
    assert missing.exit_code == 2
    assert "no recipe 'bert'; did you mean 'bert-hf'?" in missing.output


# -- transformers ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_transformers_computes_what_the_graph_did(tmp_path: Path) -> None:
    torch, transformers = needed("torch"), needed("transformers")
    convert(BERT.path, tmp_path / "out", recipe())
    model, told = transformers.AutoModelForPreTraining.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(told.values()), told
    given = arrays()
    inputs = {
        "input_ids": given["in_input_ids"],
        "attention_mask": given["in_input_mask"],
        "token_type_ids": given["in_segment_ids"],
    }
    with torch.no_grad():
        found = model.eval()(
            **{name: torch.tensor(values.astype("i8")) for name, values in inputs.items()},
            output_hidden_states=True,
        )
    outputs = {
        "mlm_logits": found.prediction_logits,
        "nsp_logits": found.seq_relationship_logits,
        "embedding_output": found.hidden_states[0],
        "layer_0": found.hidden_states[1],
        "sequence_output": found.hidden_states[-1],
    }
    for name, values in outputs.items():
        scale = np.abs(given[f"out_{name}"]).max()
        np.testing.assert_allclose(values.numpy(), given[f"out_{name}"], rtol=0, atol=1e-5 * scale)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([Drop(("cls/seq*",))], "BertForMaskedLM"),
        ([Drop(("cls/*",))], "BertModel"),
        (
            [Drop(("cls/predictions/*",)), Rename({"cls/seq_relationship/(.*)": r"\1"})],
            "BertForSequenceClassification",
        ),
        (
            [Drop(("cls/predictions/*",)), Rename({"cls/seq_relationship/(.*)": r"cls/squad/\1"})],
            "BertForQuestionAnswering",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_transformers_finds_all_variables(steps: list[Strategy], name: str, tmp_path: Path) -> None:
    transformers = needed("transformers")
    needed("torch")
    convert(BERT.path, tmp_path / "out", [*steps, *recipe()])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (architecture,) = config["architectures"]
    assert architecture == name
    _, told = getattr(transformers, name).from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    missing = {key for key in told["missing_keys"] if "pooler" not in key}
    assert not missing
    assert not told["mismatched_keys"]
