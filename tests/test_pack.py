"""Packed models open with the host's own unpacker; nothing is ever uploaded."""

import zipfile
from pathlib import Path

import pytest
import yaml
from espnet2.main_funcs.pack_funcs import unpack
from espnet_model_zoo.downloader import ModelDownloader

from espnet_smoe.bin import smoe_pack, smoe_upload

MEMBERS = [
    "config.yaml",
    "data/bpemodel/bpe.model",
    "data/stats_file/feats_stats.npz",
    "decode.yaml",
    "decode_test/RESULTS.md",
    "meta.yaml",
    "valid.acc.ave.pth",
]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe folder with a finished experiment; the current folder."""
    folder = tmp_path / "recipe"
    exp = folder / "exp/smoe_x"
    for name in ("exp/smoe_x/decode_test", "data/bpe", "exp/stats", "conf"):
        (folder / name).mkdir(parents=True)
    (folder / "data/bpe/bpe.model").write_bytes(b"pieces")
    (folder / "exp/stats/feats_stats.npz").write_bytes(b"stats")
    (folder / "conf/decode.yaml").write_text("beam_size: 5\n")
    (exp / "decode_test/RESULTS.md").write_text("# RESULTS: x\n\n## Scores\n")
    (exp / "valid.acc.ave_3best.pth").write_bytes(b"weights")
    (exp / "valid.acc.ave.pth").symlink_to("valid.acc.ave_3best.pth")
    config = {
        "bpemodel": "data/bpe/bpe.model",
        "token_list": ["<blank>", "data", "decode.yaml.", "Müller"],
        "normalize_conf": {"stats_file": "exp/stats/feats_stats.npz"},
        "encoder_conf": {"output_size": 64},
    }
    (exp / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(folder)
    return folder


def pack(out, *options):
    return smoe_pack.main(["--exp_dir", "exp/smoe_x", "--out", str(out), *options])


def check_loaded(found):
    """The constructor's arguments name real files with the right content."""
    assert sorted(found) == ["asr_model_file", "asr_train_config"]
    assert Path(found["asr_model_file"]).read_bytes() == b"weights"
    config = yaml.safe_load(Path(found["asr_train_config"]).read_text("utf-8"))
    assert Path(config["bpemodel"]).read_bytes() == b"pieces"
    assert Path(config["normalize_conf"]["stats_file"]).read_bytes() == b"stats"
    assert config["token_list"] == ["<blank>", "data", "decode.yaml.", "Müller"]


@pytest.mark.parametrize("inside", [True, False], ids=["below cwd", "elsewhere"])
def test_the_hosts_unpack_gives_working_paths_wherever_the_zip_was_made(
    recipe, tmp_path, monkeypatch, inside
):
    out = recipe / "exp/smoe_x/x.zip" if inside else tmp_path / "other/x.zip"
    assert pack(out, "--inference_config", "conf/decode.yaml") == 0
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(out) as archive:
        assert sorted(archive.namelist()) == MEMBERS
    check_loaded(unpack(out, tmp_path / "unpacked"))
    assert not list(out.parent.glob(".*"))


def test_the_unpacked_files_load_as_a_snapshot_of_the_hub(recipe, tmp_path):
    assert pack("x.zip") == 0
    with zipfile.ZipFile("x.zip") as archive:
        archive.extractall(tmp_path / "snapshot")
    snapshot = str(tmp_path / "snapshot")
    check_loaded(ModelDownloader._unpack_cache_dir_for_huggingface(snapshot))


def test_packing_leaves_the_experiment_as_it_was(recipe):
    before = {p: p.read_bytes() for p in recipe.rglob("*") if p.is_file()}
    assert pack("x.zip") == 0
    (recipe / "x.zip").unlink()
    assert {p: p.read_bytes() for p in recipe.rglob("*") if p.is_file()} == before


def test_a_moved_experiment_packs_its_own_tokeniser_from_any_folder(
    recipe, tmp_path, monkeypatch
):
    exp = recipe / "exp/smoe_x"
    (exp / "bpe.model").write_bytes(b"pieces")
    config = yaml.safe_load((exp / "config.yaml").read_text("utf-8"))
    config["bpemodel"] = "exp/smoe_x/bpe.model"  # as trained, from the recipe
    config["normalize_conf"]["stats_file"] = str(recipe / "exp/stats/feats_stats.npz")
    (exp / "config.yaml").write_text(yaml.safe_dump(config))
    moved = exp.rename(tmp_path / "moved")
    # another model's file, where the config's path leads from here
    elsewhere = tmp_path / "elsewhere/exp/smoe_x"
    elsewhere.mkdir(parents=True)
    (elsewhere / "bpe.model").write_bytes(b"of another model")
    for folder in (tmp_path / "elsewhere", tmp_path):
        monkeypatch.chdir(folder)
        out = folder / "x.zip"
        assert smoe_pack.main(["--exp_dir", str(moved), "--out", str(out)]) == 0
        check_loaded(unpack(out, folder / "unpacked"))


@pytest.mark.parametrize(
    ("gone", "options", "message"),
    [
        ("exp/smoe_x/config.yaml", [], "config.yaml is missing; run stage 11 first"),
        (None, ["--inference_model", "7epoch.pth"], "7epoch.pth is missing; run stage"),
        ("data/bpe/bpe.model", [], "bpemodel names data/bpe/bpe.model, which is no"),
        ("exp/stats/feats_stats.npz", [], "stats_file names exp/stats/feats_stats.npz"),
        (None, ["--inference_config", "no.yaml"], "config no.yaml is missing"),
        (None, ["--out", "x.tar"], "--out must end in .zip, got x.tar"),
    ],
)
def test_a_missing_part_is_named_and_an_older_zip_stays(
    recipe, capsys, gone, options, message
):
    Path("x.zip").write_bytes(b"old")
    if gone:
        Path(gone).unlink()
    assert pack("x.zip", *options) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert Path("x.zip").read_bytes() == b"old"
    assert not list(Path().glob(".*"))


def test_the_upload_would_send_what_was_packed(recipe):
    assert pack("x.zip", "--inference_config", "conf/decode.yaml") == 0
    assert smoe_upload.upload_files(Path("x.zip")) == MEMBERS


def test_the_card_says_how_to_load_and_holds_the_results_below_its_heading():
    text = smoe_upload.card("me/x", ["# RESULTS: x\n\n## Scores\n"])
    assert text.startswith("---\ntags:\n- espnet\n")
    assert 'Speech2Text.from_pretrained("me/x")' in text
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == ["# me/x", "## RESULTS: x", "### Scores"]


def make_zip(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "x")


@pytest.mark.parametrize(
    ("make", "repo", "message"),
    [
        (None, "me/x", "x.zip is missing; run stage 14 first"),
        (lambda p: p.write_text("text"), "me/x", "x.zip is no zip"),
        (lambda p: make_zip(p, "a.pth"), "me/x", "holds no meta.yaml"),
        (
            lambda p: make_zip(p, "meta.yaml", "../evil"),
            "me/x",
            "'../evil' leaves the folder",
        ),
        (lambda p: make_zip(p, "meta.yaml"), "me", "must be user/name, got 'me'"),
        (lambda p: make_zip(p, "meta.yaml"), "me/x", "not logged in"),
    ],
    ids=["missing", "no zip", "no model", "escape", "repository", "no login"],
)
def test_an_upload_that_cannot_work_says_why_in_one_sentence(
    tmp_path, monkeypatch, capsys, make, repo, message
):
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token")
    )
    packed = tmp_path / "x.zip"
    if make:
        make(packed)
    assert smoe_upload.main(["--packed", str(packed), "--hf_repo", repo]) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("smoe_upload: ")
    assert message in error[-1]


def test_an_upload_without_network_says_so_in_one_sentence(
    tmp_path, monkeypatch, capsys
):
    # port 9 of this machine: nothing listens, so nothing can leave it
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.HF_HUB_OFFLINE", True)
    make_zip(tmp_path / "x.zip", "meta.yaml")
    command = ["--packed", str(tmp_path / "x.zip"), "--hf_repo", "me/x"]
    assert smoe_upload.main(command) == 1
    error = capsys.readouterr().err.splitlines()
    assert "x.zip to me/x: " in error[-1]
