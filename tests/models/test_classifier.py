"""The classifier behind timm's interface, and its pretrained weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import timm_test_models
import torch
from PIL import Image
from reference_data import random_images
from rule_weights import load_rule_weights, rule_state_dict
from safetensors.torch import save_file
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor

from dpt_zoo.errors import FetchError, InputError
from dpt_zoo.manifest.records import get_model_info
from dpt_zoo.models import DPT, DPTClassifier
from dpt_zoo.weights.store import adopt

STRIDES = (4, 8, 16, 32)


class TestTimm:
    def test_the_name_gives_the_classifier(self) -> None:
        model = timm.create_model("dpt_small")
        assert isinstance(model, DPTClassifier)
        assert timm.list_models("dpt_*") == ["dpt_medium", "dpt_small", "dpt_tiny"]
        with torch.inference_mode():
            assert model.eval()(torch.zeros(2, 3, 224, 224)).shape == (2, 1000)

    def test_features_are_the_maps_that_a_detector_sees(self) -> None:
        features: Any = load_rule_weights(timm.create_model("dpt_tiny", features_only=True)).eval()
        assert features.feature_info.channels() == [64, 128, 320, 512]
        assert features.feature_info.reduction() == list(STRIDES)
        backbone = DPT("tiny").eval()
        backbone.load_state_dict(features.model.state_dict(), strict=False)
        images = random_images(7, (1, 3, 96, 64))
        with torch.inference_mode():
            for ours, theirs in zip(features(images), backbone(images), strict=True):
                assert torch.equal(ours, theirs)

    def test_some_features(self) -> None:
        features = timm.create_model("dpt_tiny", features_only=True, out_indices=(1, -1)).eval()
        with torch.inference_mode():
            assert [list(m.shape[1:]) for m in features(torch.zeros(1, 3, 64, 64))] == [[128, 8, 8], [512, 2, 2]]

    def test_intermediates_come_with_the_last_tokens(self) -> None:
        model = timm.create_model("dpt_tiny").eval()
        images = random_images(7, (1, 3, 64, 64))
        with torch.inference_mode():
            tokens, maps = model.forward_intermediates(images, indices=2)
            assert torch.equal(tokens, model.forward_features(images))
        assert [len(m[0]) for m in maps] == [320, 512]

    def test_the_head_can_be_replaced_or_left_out(self) -> None:
        model = timm.create_model("dpt_tiny", num_classes=7).eval()
        images = torch.zeros(1, 3, 64, 64)
        with torch.inference_mode():
            assert model(images).shape == (1, 7)
            model.reset_classifier(0)
            assert model(images).shape == (1, 512)
        with pytest.raises(InputError, match="class token"):
            model.reset_classifier(3, global_pool="avg")

    def test_a_new_head_has_the_models_type(self) -> None:
        model = timm.create_model("dpt_tiny").bfloat16()
        model.reset_classifier(7)
        assert model.head.weight.dtype == torch.bfloat16

    def test_dropout_comes_before_the_head(self) -> None:
        model = timm.create_model("dpt_tiny", drop_rate=0.5)
        tokens = torch.ones(1, 50, 512)
        assert 0 < (model.train().forward_head(tokens, pre_logits=True) == 0).sum() < 512
        assert torch.equal(model.eval().forward_head(tokens, pre_logits=True), tokens[:, 0])

    def test_drop_path_rate(self) -> None:
        model = timm.create_model("dpt_tiny", drop_path_rate=0.3)
        assert model.get_submodule("block4.1.drop_path").drop_prob == pytest.approx(0.3)

    def test_gradient_checkpointing(self) -> None:
        model = timm.create_model("dpt_tiny")
        model.set_grad_checkpointing()
        assert model.gradient_checkpointing
        model.set_grad_checkpointing(False)
        assert not model.gradient_checkpointing

    def test_pooling_is_the_class_token(self) -> None:
        assert timm.create_model("dpt_tiny", global_pool="token").head.out_features == 1000
        with pytest.raises(InputError, match="global_pool='avg' is not supported"):
            timm.create_model("dpt_tiny", global_pool="avg")

    def test_optimizers_of_timm(self) -> None:
        model = timm.create_model("dpt_tiny")
        decay = {"weight_decay": 0.05, "layer_decay": 0.5}
        groups = create_optimizer_v2(model, opt="adamw", lr=1.0, **decay).param_groups
        scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
        names = (
            "head.weight",
            "block4.0.mlp.fc1.weight",
            "pos_embed3",
            "patch_embed2.norm.bias",
            "patch_embed1.proj.bias",
        )
        found = [scales[id(model.get_parameter(name))] for name in names]
        assert found == sorted(found, reverse=True) and len(set(found)) == len(names)
        undecayed = {id(parameter) for group in groups if not group["weight_decay"] for parameter in group["params"]}
        assert id(model.pos_embed3) in undecayed and id(model.cls_token) in undecayed

    def test_numpy_numbers(self) -> None:
        assert timm.create_model("dpt_tiny", num_classes=np.int64(3)).num_classes == 3


class TestTimmsOwnTests:
    """timm's tests/test_models.py."""

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["dpt_tiny", "dpt_small", "dpt_medium"])
    @pytest.mark.parametrize(
        "function",
        [
            "forward",
            "backward",
            "default_cfgs_non_std",
            "forward_torchscript",
            "forward_features",
            "forward_intermediates_features",
            "forward_intermediates",
            "forward_fx",
            "backward_fx",
        ],
    )
    def test_of_models(self, function: str, name: str) -> None:
        getattr(timm_test_models, f"test_model_{function}")(name, batch_size=2)

    @pytest.mark.parametrize("name", ["dpt_small", "dpt_medium"])
    def test_default_config(self, name: str) -> None:
        with torch.device("meta"):  # its structure is enough
            model = DPTClassifier(name.removeprefix("dpt_"))
        cfg = timm.get_pretrained_cfg(name)
        parameters = {name for name, _ in model.named_parameters()}
        assert {f"{cfg.first_conv}.weight", f"{cfg.classifier}.weight"} <= parameters
        assert cfg.num_classes == model.num_classes == 1000
        assert model.num_features == model.head_hidden_size == 512
        assert cfg.pool_size == tuple(side // STRIDES[-1] for side in cfg.input_size[1:])

    def test_features_of_any_image_size(self) -> None:
        model = timm.create_model("dpt_tiny", features_only=True, in_chans=1).eval()
        with torch.inference_mode():
            maps = model(random_images(7, (1, 1, 70, 101)))
        expected = zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True)
        assert [tuple(each.shape) for each in maps] == [(1, c, 70 // s, 101 // s) for c, s in expected]

    def test_gradient_checkpointing_changes_nothing(self) -> None:
        model = timm.create_model("dpt_tiny", drop_path_rate=0.0).train()
        images = random_images(7, (1, 3, 64, 64))
        before, (tokens, _) = model(images), model.forward_intermediates(images)
        model.set_grad_checkpointing()
        after, (same_tokens, _) = model(images), model.forward_intermediates(images)
        assert torch.equal(before, after) and torch.equal(tokens, same_tokens)

    @pytest.mark.slow
    def test_export(self) -> None:
        model = timm.create_model("dpt_tiny").eval()
        images = random_images(7, (2, 3, 224, 224))
        with torch.no_grad():
            exported = torch.export.export(model, (images,)).module()
            torch.testing.assert_close(exported(images), model(images), rtol=0, atol=1e-4)
            others = random_images(7, (1, 3, 70, 101))
            for graph in (torch.jit.trace(model, images, check_trace=False), torch.jit.script(model)):
                torch.testing.assert_close(graph(others), model(others), rtol=0, atol=1e-4)

    def test_a_script_is_for_inference(self) -> None:
        with pytest.raises(InputError, match=r"call model\.eval\(\) before"):
            torch.jit.script(timm.create_model("dpt_tiny").train())


class TestTraining:
    """The steps of timm's train.py, which imports `dpt_zoo.models` by `--device-modules`."""

    def test_it_learns_the_images_of_a_folder(self, tmp_path: Path) -> None:
        for label, color in enumerate([(200, 30, 30), (30, 30, 200)]):
            for number in range(2):
                path = tmp_path / "train" / f"class{label}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (48, 40), tuple(value + number for value in color)).save(path)
        torch.manual_seed(0)
        model = timm.create_model("dpt_tiny", num_classes=2, drop_path_rate=0.1)
        config = resolve_data_config({"img_size": 32}, model=model)
        assert config["input_size"] == (3, 32, 32)
        dataset = create_dataset("", root=tmp_path, split="train")
        loader = create_loader(
            dataset,
            config["input_size"],
            4,
            is_training=True,
            num_workers=0,
            use_prefetcher=False,
            persistent_workers=False,
        )
        optimizer = create_optimizer_v2(model, opt="adamw", lr=5e-4, weight_decay=0.05, layer_decay=0.9)
        scheduler, num_epochs = create_scheduler_v2(optimizer, num_epochs=5, updates_per_epoch=1)
        assert num_epochs == 5
        losses = []
        for epoch in range(num_epochs):
            for images, labels in loader:
                loss = torch.nn.functional.cross_entropy(model.train()(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            scheduler.step(epoch + 1)
        assert losses[-1] < 0.5 * losses[0]


class TestPretrained:
    """`pretrained=True` takes the weights that the zoo fetches, checks and caches."""

    @pytest.fixture(scope="class")
    def weights(self) -> dict[str, Tensor]:
        return rule_state_dict(DPTClassifier("tiny").state_dict())

    @pytest.fixture(autouse=True)
    def cached(self, weights: dict[str, Tensor], tmp_path: Path, empty_cache: Path) -> None:
        save_file(weights, tmp_path / "dpt_tiny.safetensors")
        adopt(get_model_info("dpt_tiny"), tmp_path / "dpt_tiny.safetensors")

    def test_it_has_the_weights(self, weights: dict[str, Tensor]) -> None:
        state = timm.create_model("dpt_tiny", pretrained=True).state_dict()
        assert state.keys() == weights.keys()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in state.items())

    def test_features_have_them(self, weights: dict[str, Tensor]) -> None:
        state = timm.create_model("dpt_tiny", pretrained=True, features_only=True).state_dict()
        assert state and all(
            torch.equal(tensor, weights[name.removeprefix("model.")]) for name, tensor in state.items()
        )

    def test_a_head_for_other_classes_is_fresh(self, weights: dict[str, Tensor]) -> None:
        model = timm.create_model("dpt_tiny", pretrained=True, num_classes=7)
        assert model.head.weight.shape == (7, 512)
        assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.2) and not model.head.bias.any()
        assert torch.equal(model.cls_token, weights["cls_token"])

    def test_other_input_channels_take_the_sum_of_the_colours(self, weights: dict[str, Tensor]) -> None:
        model = timm.create_model("dpt_tiny", pretrained=True, in_chans=1)
        expected = weights["patch_embed1.proj.weight"].sum(dim=1, keepdim=True)
        assert torch.allclose(model.patch_embed1.proj.weight, expected)

    def test_a_file_of_the_callers_own_comes_first(self, weights: dict[str, Tensor], tmp_path: Path) -> None:
        own = {name: tensor + 1 for name, tensor in weights.items()}
        save_file(own, tmp_path / "own.safetensors")
        overlay = {"file": str(tmp_path / "own.safetensors")}
        model = timm.create_model("dpt_tiny", pretrained=True, pretrained_cfg_overlay=overlay)
        assert torch.equal(model.cls_token, own["cls_token"])

    def test_weights_that_are_not_here_say_how_to_get_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DPT_ZOO_OFFLINE", "1")
        with pytest.raises(FetchError, match="dpt-zoo import dpt_small FILE"):
            timm.create_model("dpt_small", pretrained=True)

    def test_a_mirror_has_them(
        self, weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DPT_ZOO_CACHE", str(tmp_path / "another"))
        monkeypatch.setenv("DPT_ZOO_MIRROR", str(tmp_path))
        model = timm.create_model("dpt_tiny", pretrained=True)
        assert torch.equal(model.cls_token, weights["cls_token"])
