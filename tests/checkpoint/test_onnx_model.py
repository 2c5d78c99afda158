"""A decoder gives the same bits as an ONNX graph, however it is written, as from its Hugging Face folder."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openlpu import compile as pipeline
from openlpu._base.errors import BadCheckpoint, BadRequest, OpenLpuError, Unsupported
from openlpu.checkpoint.folder import load
from openlpu.cli import main

onnx = pytest.importorskip("onnx", reason="needs the onnx package to write graphs")
pytest.importorskip("onnx_ir", reason="needs the onnx-ir package to read them")

from onnx_graphs import Style, export  # noqa: E402

NAMES = ("llama2", "llama3", "llama-bias", "mistral", "qwen2", "qwen3", "smollm")
STYLES = {
    "plain": Style(),
    "gemm": Style(weights="gemm", root="div", mask="where"),
    "fused": Style(weights="fused", root="power", turn="split", scale="both"),
    "interleaved": Style(turn="interleaved", opset=18),
    "table": Style(turn="table", mask="where"),
    "five axes": Style(repeat="five", cache="grow"),
    "cache": Style(cache="grow", mask="where", weights="fused", turn="table"),
    "mask as input": Style(cache="grow", mask="input"),
    "opset 23": Style(opset=23, standard=True),
    "opset 23, causal": Style(opset=23, standard=True, mask="causal", turn="interleaved"),
    "opset 23, cache": Style(opset=23, standard=True, cache="grow", mask="where"),
    "opset 24, slots": Style(opset=24, standard=True, cache="slots"),
    "scattered": Style(cache="slots", mask="where"),
    "opset 24, decomposed": Style(opset=24, cache="slots", mask="where"),
}


def beside(folder: Path, path: Path) -> str:
    """A name of the file with the texts of a folder."""
    return f"{path}@{folder}"


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())
def test_every_way_to_write_a_graph_has_the_folders_bits(models: Path, tmp_path: Path, style: Style) -> None:
    folder = models / "smollm"
    path = export(folder, tmp_path / "m.onnx", style)
    context = min(style.slots if style.cache == "slots" else 64, load(folder).config.context)
    file = pipeline.compile(beside(folder, path), context=context)
    assert file.fingerprint() == pipeline.compile(folder, context=context).fingerprint()
    wanted, found = load(folder).tensors, file.checkpoint.tensors
    assert list(found) == list(wanted) and all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("style", ["plain", "fused", "opset 23, cache"])
def test_every_architecture_has_the_folders_bits(models: Path, tmp_path: Path, name: str, style: str) -> None:
    """Biases, head norms, grouped queries, scaled angles, tied embeddings: all found in the graph again."""
    folder, path = models / name, tmp_path / "m.onnx"
    export(folder, path, STYLES[style])
    file = load(beside(folder, path))
    wanted = load(folder)
    same = replace(file.config, architecture=wanted.config.architecture)
    assert same == wanted.config
    assert list(file.tensors) == [name for name in wanted.tensors if name in file.tensors]
    assert pipeline.compile(beside(folder, path)).graph.nodes == pipeline.compile(folder).graph.nodes


def test_a_window_is_found_in_the_mask(models: Path, tmp_path: Path, edited) -> None:
    folder = edited("mistral", sliding_window=16)
    path = export(folder, tmp_path / "m.onnx", Style(cache="grow"))
    assert load(beside(folder, path)).config == load(folder).config
    some = edited("qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=1)
    path = export(some, tmp_path / "some.onnx", Style(mask="where"))
    assert load(beside(some, path)).config == load(some).config


def test_the_trained_model_has_one_fingerprint_in_four_files(shared: Path) -> None:
    folder = shared / "models" / "stories260K"
    wanted = pipeline.compile(folder)
    for word in ("opset21", "opset23", "kv_opset23"):
        found = pipeline.compile(f"{shared}/models/onnx/stories260K_{word}.onnx@{folder}")
        assert found.checkpoint.config == wanted.checkpoint.config
        assert found.fingerprint() == wanted.fingerprint(), word


def test_the_trained_model_says_the_same(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One hash of logits, over all that is generated."""
    folder, lines = shared / "models" / "stories260K", []
    for name in (folder, f"{shared}/models/onnx/stories260K_kv_opset23.onnx@{folder}"):
        assert main(["run", str(name), "Once upon a time", "--max-tokens", "8", "--json", "--temperature", "0"]) == 0
        lines.append(capsys.readouterr().out)
    found = [line.partition('"logits_sha256": ')[2][:66] for line in lines]
    assert found[0] == found[1] != ""


def test_without_a_tokenizer_ids_run_and_text_says_why_not(shared: Path) -> None:
    path = shared / "models" / "onnx" / "stories260K_opset23.onnx"
    compiled = pipeline.compile(path)
    assert compiled.checkpoint.config.context == 2048
    with pipeline.start(compiled, "cpu") as model:
        assert len(model.generate((1, 2, 3), max_tokens=2).finish().token_ids) == 2
        with pytest.raises(BadCheckpoint, match=r"has no tokenizer.*\n.*stories260K_opset23.onnx@FOLDER"):
            model.generate("Once")


def test_a_tokenizer_beside_the_file_is_used(models: Path, tmp_path: Path) -> None:
    folder = models / "smollm"
    path = export(folder, tmp_path / "m.onnx")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"):
        if (folder / name).is_file():
            shutil.copy(folder / name, tmp_path / name)
    assert load(path).tokenizer.document() == load(folder).tokenizer.document()
    assert load(path).sha256() == load(folder).sha256() or load(folder).tensors.entries != load(path).tensors.entries
    with pytest.raises(BadCheckpoint, match="no such folder"):
        load(f"{path}@{tmp_path / 'nowhere'}")


def test_the_context_is_what_the_graph_is_proved_for(models: Path, tmp_path: Path) -> None:
    """Of a table of 64 rows 64; of none what is asked for."""
    path = export(models / "llama2", tmp_path / "t.onnx", Style(turn="table"))
    assert load(path).config.context == 64
    with pytest.raises(BadCheckpoint, match="an axis of size 64"):
        load(path, context=65)
    path = export(models / "llama2", tmp_path / "g.onnx", Style(cache="grow"))
    assert load(path, context=100_000).config.context == 100_000
    path = export(models / "llama2", tmp_path / "s.onnx", Style(opset=24, cache="slots"))
    assert load(path).config.context == 48
    with pytest.raises(BadRequest, match="1 to 48 positions"):
        load(path, context=49)


@pytest.mark.parametrize(("style", "message"), [
    (Style(hide=1), r"node 'n\d+' \(Softmax\): lets a token see later ones"),
    (Style(scale="none"), r"scales its scores by 4 / sqrt\(16\)"),
])
def test_a_decoder_of_another_kind_names_the_node(models: Path, tmp_path: Path, style: Style, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        load(export(models / "smollm", tmp_path / "m.onnx", style))


def test_models_that_are_no_decoders_name_the_node(shared: Path) -> None:
    folder = shared / "models" / "onnx"
    for file, message in {
        "resnet20_cifar10_opset21.onnx": r"node '.+' \(Conv\): the operator Conv\n  fix: one of: ",
        "resnet20_cifar10_opset21_qdq_int8.onnx": r"\((Q|Deq)uantizeLinear\).*\n.*already quantized",
        "stories260K_opset21_dynint8.onnx": r"node '.+' \(DequantizeLinear\).*\n.*already quantized",
    }.items():
        with pytest.raises(Unsupported, match=message):
            load(folder / file)


def test_broken_files_are_errors(models: Path, tmp_path: Path) -> None:
    path = export(models / "smollm", tmp_path / "m.onnx", Style(cache="grow"))
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name in ("empty.onnx", "none.onnx"):
        with pytest.raises(OpenLpuError, match=name):
            load(tmp_path / name)
    for at in rng.integers(len(whole), size=15):
        path.write_bytes(whole[:at])
        with pytest.raises(OpenLpuError):
            load(path)
    for at in rng.integers(len(whole), size=30):
        broken = bytearray(whole)
        broken[at] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            load(path)
        except OpenLpuError as error:
            assert "m.onnx" in str(error)


def test_weights_outside_the_file(models: Path, tmp_path: Path) -> None:
    folder, path = models / "smollm", tmp_path / "m.onnx"
    export(folder, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert all(np.array_equal(load(path).tensors[name], array) for name, array in load(folder).tensors.items())
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadCheckpoint, match=r"m\.onnx: c\d+: its data"):
        load(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(BadCheckpoint, match=r"m\.onnx: c\d+: its data"):
        load(path)


def test_an_old_opset_is_refused(models: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"m\.onnx: opset 16\n  fix: export the model with opset 17"):
        load(export(models / "smollm", tmp_path / "m.onnx", Style(opset=16)))


def test_half_precision_weights_are_taken_as_they_are(models: Path, tmp_path: Path) -> None:
    file = load(export(models / "llama2", tmp_path / "m.onnx", Style(half=True)))
    for name, array in load(models / "llama2").tensors.items():
        rounded = array.astype(np.float16).astype(np.float32) if "_proj" in name or "lm_head" in name else array
        assert np.array_equal(file.tensors[name], rounded)


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(Unsupported, match=r"needs the onnx-ir package\n  fix: pip install 'openlpu\[onnx\]'"):
        load(tmp_path / "m.onnx")


def test_a_graph_alone_has_no_end_tokens(models: Path, tmp_path: Path) -> None:
    config = load(export(models / "smollm", tmp_path / "m.onnx")).config
    assert config.bos is None and config.eos == ()


def test_an_input_that_no_decoder_has_is_named(models: Path, tmp_path: Path) -> None:
    path = export(models / "smollm", tmp_path / "m.onnx")
    model = onnx.load(path)
    extra = onnx.helper.make_tensor_value_info("token_type_ids", onnx.TensorProto.INT64, [1, "T", 3])
    model.graph.input.append(extra)
    onnx.save(model, path)
    with pytest.raises(Unsupported, match=r"the input 'token_type_ids' int64\[1, T, 3\] is none of a decoder's inputs"):
        load(path)


def test_local_functions_are_expanded(models: Path, tmp_path: Path) -> None:
    """The gate as a function of its own, as exporters of modules write it."""
    path = export(models / "smollm", tmp_path / "m.onnx")
    model = onnx.load(path)
    body = [onnx.helper.make_node("Sigmoid", ["x"], ["y"])]
    opset = [onnx.helper.make_opsetid("", 17)]
    model.functions.append(onnx.helper.make_function("local", "Gate", ["x"], ["y"], body, opset))
    model.opset_import.append(onnx.helper.make_opsetid("local", 1))
    for node in model.graph.node:
        if node.op_type == "Sigmoid":
            node.op_type, node.domain = "Gate", "local"
    onnx.save(model, path)
    assert list(load(path).tensors) == list(load(models / "smollm").tensors)
