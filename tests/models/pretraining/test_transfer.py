"""Transfer of a pretrained encoder: which tensors a model takes from its folder, and which folders are refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clv.models.config import BackboneConfig, ModelConfig
from clv.models.model import CustomerModel
from clv.models.pretraining import transfer
from clv.models.pretraining.pretrainer import Objectives, Pretrainer
from clv.models.pretraining.transfer import SeenDataset, WarmStart

TINY = BackboneConfig(width=16, num_layers=2, num_heads=2, intermediate=32, max_tokens=12)


@pytest.fixture
def teacher(shop) -> Pretrainer:
    return Pretrainer(TINY, transfer.joint_space([shop.space]), Objectives())


@pytest.fixture
def folder(shop, teacher: Pretrainer, tmp_path: Path) -> str:
    out = tmp_path / "encoder"
    transfer.save(
        out, TINY, transfer.joint_space([shop.space]), teacher.state_dict(), [SeenDataset("simulated", 1000)], {}
    )
    return str(out)


def student(shop, **changes: object) -> CustomerModel:
    return CustomerModel(ModelConfig(backbone=replace(TINY, **changes), hidden=16), shop.space, 2)


def test_a_model_of_the_same_dataset_takes_every_tensor_but_the_text_projection(shop, teacher, folder: str) -> None:
    model = student(shop)
    taken = transfer.warm_start(model, shop.space, TINY, folder)
    assert isinstance(taken, WarmStart)
    own, theirs = model.state_dict(), teacher.state_dict()
    names = [name for name in own if name.startswith(("backbone.", "embedding."))]
    assert len(names) > 30
    for name in names:
        if name == "embedding.text.weight":
            assert not own[name].any()
        elif name != "embedding.items.weight":  # by key, see below
            assert torch.equal(own[name], theirs[name]), name
    assert taken.matched["items"] == (shop.space.num_learned_items - 1,) * 2
    assert f"{shop.space.num_learned_items - 1:,} items" in taken.summary()


def test_only_rows_with_equal_keys_are_taken(shop, teacher, folder: str) -> None:
    keys = shop.space.item_keys.copy()
    moved = replace(
        shop.space, item_keys=np.append(keys[1:], keys[-1] + 1)
    )  # every item one row earlier, the last one new
    torch.manual_seed(1)
    model = CustomerModel(ModelConfig(backbone=TINY, hidden=16), moved, 2)
    before = model.embedding.items.weight.detach().clone()
    taken = transfer.warm_start(model, moved, TINY, folder)
    assert isinstance(taken, WarmStart)
    theirs = {key: teacher.embedding.items.weight[r] for key, r in zip(keys, shop.space.item_rank, strict=True) if r}
    for key, row in zip(moved.item_keys, moved.item_rank, strict=True):
        if row:
            wanted = theirs.get(key, before[row])
            assert torch.equal(model.embedding.items.weight[row], wanted)
    hits = sum(key in theirs for key, row in zip(moved.item_keys, moved.item_rank, strict=True) if row)
    assert taken.matched["items"] == (hits, int((moved.item_rank > 0).sum()))
    assert hits < taken.matched["items"][1]


@pytest.mark.parametrize("architecture", ["gpt2", "gru", "bilstm", "mlp"])
def test_a_backbone_of_any_architecture_is_taken_whole(shop, tmp_path: Path, architecture: str) -> None:
    config = replace(TINY, architecture=architecture)
    made = Pretrainer(config, transfer.joint_space([shop.space]), Objectives())
    transfer.save(tmp_path / "e", config, transfer.joint_space([shop.space]), made.state_dict(), [], {})
    model = student(shop, architecture=architecture, pretrained=str(tmp_path / "e"))
    transfer.warm_start(model, shop.space, config, str(tmp_path / "e"))
    for name, tensor in made.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor), name


def test_another_shape_is_refused_with_both_values(shop, folder: str) -> None:
    with pytest.raises(ValueError, match=r"has backbone\.num_layers 2, this run 3"):
        transfer.warm_start(student(shop, num_layers=3), shop.space, replace(TINY, num_layers=3), folder)


def test_a_damaged_folder_is_refused(shop, folder: str) -> None:
    path = Path(folder) / transfer.WEIGHTS
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match="differs from its sha256; the folder is damaged"):
        transfer.warm_start(student(shop), shop.space, TINY, folder)
    (Path(folder) / transfer.CONFIG).write_text("{")
    with pytest.raises(ValueError, match="is damaged; pretrain again"):
        transfer.read_config(folder)
    (Path(folder) / transfer.CONFIG).write_text(json.dumps({"format": 2}))
    with pytest.raises(ValueError, match="has format 2, this version of clv reads 1"):
        transfer.read_config(folder)


def test_an_encoder_that_has_seen_the_evaluation_is_refused_for_that_dataset_only(folder: str) -> None:
    transfer.check_cut(folder, "simulated", 1000, "then")
    transfer.check_cut(folder, "another", 0, "then")
    transfer.check_cut(None, "simulated", 0, "then")
    with pytest.raises(ValueError, match="has seen simulated until 1970-01-01, after then"):
        transfer.check_cut(folder, "simulated", 999, "then")


def test_a_folder_without_an_encoder_is_not_replaced(shop, teacher, tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not a pretrained encoder; choose another --out"):
        transfer.save(tmp_path, TINY, shop.space, teacher.state_dict(), [], {})
    assert (tmp_path / "keep.txt").read_text() == "mine"


def test_a_joint_space_has_the_keys_of_all_datasets_and_the_amount_scale_of_one(shop) -> None:
    other = replace(
        shop.space,
        item_keys=shop.space.item_keys + 1,
        category_names=("elsewhere",),
        item_category=np.minimum(shop.space.item_category, 1),
        amount_center=9.0,
    )
    joint = transfer.joint_space([shop.space, other])
    assert set(joint.item_keys) == set(shop.space.item_keys) | set(other.item_keys)
    assert joint.category_names == tuple(sorted({*shop.space.category_names, "elsewhere"}))
    assert joint.num_learned_items <= shop.space.num_learned_items + other.num_learned_items - 1
    at = np.searchsorted(joint.item_keys, shop.space.item_keys[:5]) + 1
    names = [joint.category_names[c - 1] for c in joint.item_category[at]]
    assert names == [shop.space.category_names[c - 1] for c in shop.space.item_category[1:6]]
    assert transfer.with_amount_scale(joint, other).amount_center == 9.0
