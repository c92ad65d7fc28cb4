"""Networks of packages other than torchvision and timm, with random weights and example inputs; nothing is downloaded.

    pip install ultralytics segmentation-models-pytorch transformers monai pytorchcv open_clip_torch speechbrain \
        braindecode torch_geometric torchaudio

`networks()` lists those of the packages that are installed. Sizes are small where a configuration allows it: what
matters is the operators and how they are connected. `bench_wild.py` prunes them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

Inputs = tuple[Any, ...] | dict[str, Any]
Build = Callable[[], tuple[nn.Module, Inputs]]

PACKAGES = {
    "ultralytics": "ultralytics",
    "smp": "segmentation_models_pytorch",
    "transformers": "transformers",
    "monai": "monai",
    "pytorchcv": "pytorchcv",
    "open_clip": "open_clip",
    "speechbrain": "speechbrain",
    "braindecode": "braindecode",
    "pyg": "torch_geometric",
    "torchaudio": "torchaudio",
}
"""Import name of each package by the prefix of its networks."""


def networks() -> dict[str, Build]:
    """Return the networks of all installed packages by name."""
    listed: dict[str, Build] = {}
    for prefix, package in PACKAGES.items():
        if find_spec(package) is not None:
            listed |= {f"{prefix}/{name}": build for name, build in _FAMILIES[prefix]().items()}
    return listed


def outputs_of(name: str) -> str | None:
    """Return which outputs a user of this network wants, as an index path; None for all."""
    return "0" if name.startswith("ultralytics/") and "-cls" not in name else None


def _image(*shape: int) -> tuple[torch.Tensor]:
    return (torch.randn(1, *shape),)


# -- detection, segmentation, classification -------------------------------------------------------------------------


def _ultralytics() -> dict[str, Build]:
    kinds = {"cls": "ClassificationModel", "seg": "SegmentationModel", "pose": "PoseModel", "obb": "OBBModel"}
    names = (
        "yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov8n-cls", "yolov8n-seg", "yolov8n-pose", "yolov8n-obb",
        "yolov8n-p2", "yolov8n-ghost", "yolov9t", "yolov9c-seg", "yolov10n", "yolo11n", "yolo11n-cls", "yolo11n-seg",
        "yolo11n-pose", "yolo11n-obb", "yolo12n", "yolo12n-seg", "yolo26n", "yolo26n-seg", "yolo26n-pose", "rtdetr-l",
        "rtdetr-resnet50", "yolov8n-rtdetr",
    )  # fmt: skip

    def build(name: str) -> tuple[nn.Module, Inputs]:
        tasks = importlib.import_module("ultralytics.nn.tasks")
        kind = "RTDETRDetectionModel" if "rtdetr" in name else kinds.get(name.split("-")[-1], "DetectionModel")
        size = 224 if kind == "ClassificationModel" else 320
        return getattr(tasks, kind)(f"{name}.yaml", verbose=False), _image(3, size, size)

    return {name: lambda name=name: build(name) for name in names}


def _smp() -> dict[str, Build]:
    decoders = (
        "unet",
        "unetplusplus",
        "manet",
        "linknet",
        "fpn",
        "pspnet",
        "deeplabv3",
        "deeplabv3plus",
        "pan",
        "upernet",
    )
    encoders = (
        "resnet50", "vgg11_bn", "densenet121", "efficientnet-b0", "mobilenet_v2", "xception", "inceptionv4",
        "inceptionresnetv2", "dpn68", "se_resnet50", "resnext50_32x4d", "timm-skresnet18", "mobileone_s0", "mit_b0",
        "timm-tf_efficientnet_lite0",
    )  # fmt: skip

    def build(decoder: str, encoder: str) -> tuple[nn.Module, Inputs]:
        smp = importlib.import_module("segmentation_models_pytorch")
        return smp.create_model(decoder, encoder_name=encoder, encoder_weights=None, classes=3), _image(3, 128, 128)

    pairs = [(decoder, "resnet18") for decoder in decoders] + [("unet", encoder) for encoder in encoders]
    pairs += [("segformer", "mit_b0"), ("segformer", "resnet18"), ("fpn", "efficientnet-b0")]
    return {f"{decoder}-{encoder}": lambda pair=(decoder, encoder): build(*pair) for decoder, encoder in pairs}


def _pytorchcv() -> dict[str, Build]:
    names = (
        "bn_vgg11", "bninception", "resnet18", "resnet26", "preresnet18", "preresnetbc26b", "resnext26_32x4d",
        "seresnet18", "sepreresnet18", "senet16", "resnestabc26", "ibn_resnet50", "airnet50_1x64d_r16", "bam_resnet18",
        "cbam_resnet18", "resattnet56", "sknet50", "scnet50", "regnetx002", "regnety002", "diaresnet18",
        "diapreresnet18", "diracnet18v2", "sharesnet18", "densenet121", "condensenet74_c8_g8", "sparsenet121",
        "peleenet", "wrn50_2", "drnc26", "dpn68", "darknet_tiny", "darknet53", "channelnet", "revnet38", "bagnet9",
        "dla34", "dla46xc", "fishnet99", "espnetv2_wd2", "dicenet_wd5", "hrnet_w18_small_v1", "vovnet27s",
        "selecsls42", "hardnet39ds", "squeezeresnet_v1_1", "sqnxt23_w1", "shufflenet_g3_wd4", "shufflenetv2_wd2",
        "shufflenetv2b_w1", "menet108_8x1_g3", "mobilenet_wd4", "fdmobilenet_wd4", "mobilenetv2_wd4",
        "mobilenetv3_small_w1", "igcv3_wd4", "ghostnet", "mnasnet_a1", "darts", "proxylessnas_cpu", "fbnet_cb",
        "xception", "inceptionv3", "inceptionresnetv1", "nasnet_4a1056", "spnasnet", "efficientnet_b0",
        "efficientnet_b0b", "mixnet_s", "pyramidnet110_a48_cifar10", "resnet20_cifar10", "preresnet20_cifar10",
        "densenet40_k12_cifar10", "wrn16_10_cifar10", "shakeshakeresnet20_2x16d_cifar10", "nin_cifar10",
        "ror3_56_cifar10", "rir_cifar10", "xdensenet40_2_k24_bc_cifar10",
    )  # fmt: skip

    def build(name: str) -> tuple[nn.Module, Inputs]:
        size = 32 if "cifar" in name else 299 if "inception" in name or "xception" in name else 224
        provider = importlib.import_module("pytorchcv.model_provider")
        return provider.get_model(name, pretrained=False), _image(3, size, size)

    return {name: lambda name=name: build(name) for name in names}


def _open_clip() -> dict[str, Build]:
    def build(name: str, *, tower: bool) -> tuple[nn.Module, Inputs]:
        model = importlib.import_module("open_clip").create_model(name, pretrained=None)
        visual = model.visual
        size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
        image = torch.randn(1, 3, size, size)
        return (visual, (image,)) if tower else (model, (image, torch.randint(1, 1000, (1, model.context_length))))

    listed: dict[str, Build] = {"RN50": lambda: build("RN50", tower=False)}
    for name in ("RN50", "RN50x4", "MobileCLIP-S1", "MobileCLIP2-S0"):
        listed[f"{name}-visual"] = lambda name=name: build(name, tower=True)
    return listed


# -- transformers ----------------------------------------------------------------------------------------------------


def _transformers() -> dict[str, Build]:
    image = {"pixel_values": torch.randn(1, 3, 64, 64)}
    larger = {"pixel_values": torch.randn(1, 3, 224, 224)}
    resnet = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 128], "embedding_size": 16, "layer_type": "basic"}
    stages = {"out_features": ["stage2", "stage3", "stage4"]}

    def build(
        config: str, model: str, inputs: Inputs, options: dict[str, Any], backbone: tuple[str, dict[str, Any]] | None
    ) -> tuple[nn.Module, Inputs]:
        package = importlib.import_module("transformers")
        if backbone is not None:
            options = {**options, "backbone_config": getattr(package, backbone[0])(**backbone[1])}
        return getattr(package, model)(getattr(package, config)(**options)), inputs

    table: dict[str, tuple[str, str, Inputs, dict[str, Any], tuple[str, dict[str, Any]] | None]] = {
        "resnet": ("ResNetConfig", "ResNetForImageClassification", image, resnet, None),
        "resnet-backbone": ("ResNetConfig", "ResNetBackbone", image, {**resnet, **stages}, None),
        "regnet": ("RegNetConfig", "RegNetForImageClassification", image, {}, None),
        "mobilenet-v1": ("MobileNetV1Config", "MobileNetV1ForImageClassification", image, {}, None),
        "mobilenet-v2": ("MobileNetV2Config", "MobileNetV2ForImageClassification", image, {}, None),
        "mobilenet-v2-seg": ("MobileNetV2Config", "MobileNetV2ForSemanticSegmentation", larger, {}, None),
        "efficientnet": (
            "EfficientNetConfig",
            "EfficientNetForImageClassification",
            larger,
            {"depth_coefficient": 1.0, "width_coefficient": 1.0, "hidden_dim": 1280},
            None,
        ),
        "levit": ("LevitConfig", "LevitForImageClassification", larger, {}, None),
        "cvt": ("CvtConfig", "CvtForImageClassification", larger, {}, None),
        "segformer": ("SegformerConfig", "SegformerForSemanticSegmentation", image, {}, None),
        "mobilevit": (
            "MobileViTConfig",
            "MobileViTForImageClassification",
            {"pixel_values": torch.randn(1, 3, 256, 256)},
            {},
            None,
        ),
        "mobilevit-v2": (
            "MobileViTV2Config",
            "MobileViTV2ForImageClassification",
            {"pixel_values": torch.randn(1, 3, 256, 256)},
            {"width_multiplier": 0.5},
            None,
        ),
        "swiftformer": ("SwiftFormerConfig", "SwiftFormerForImageClassification", larger, {}, None),
        "textnet": ("TextNetConfig", "TextNetForImageClassification", larger, {}, None),
        "hgnet-v2": ("HGNetV2Config", "HGNetV2ForImageClassification", larger, {}, None),
        "pp-lcnet": ("PPLCNetConfig", "PPLCNetForImageClassification", larger, {}, None),
        "detr": (
            "DetrConfig",
            "DetrForObjectDetection",
            larger,
            {
                "use_timm_backbone": False,
                "use_pretrained_backbone": False,
                "backbone": None,
                "encoder_layers": 1,
                "decoder_layers": 1,
                "d_model": 64,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
            },
            ("ResNetConfig", {**resnet, "out_features": ["stage4"]}),
        ),
        "deformable-detr": (
            "DeformableDetrConfig",
            "DeformableDetrForObjectDetection",
            larger,
            {
                "use_timm_backbone": False,
                "use_pretrained_backbone": False,
                "backbone": None,
                "encoder_layers": 1,
                "decoder_layers": 2,
                "d_model": 64,
            },
            ("ResNetConfig", {**resnet, **stages}),
        ),
        "rt-detr": (
            "RTDetrConfig",
            "RTDetrForObjectDetection",
            larger,
            {
                "encoder_in_channels": [32, 64, 128],
                "encoder_hidden_dim": 64,
                "d_model": 64,
                "decoder_layers": 2,
                "decoder_in_channels": [64, 64, 64],
                "num_queries": 20,
                "encoder_ffn_dim": 64,
                "decoder_ffn_dim": 64,
            },
            (
                "RTDetrResNetConfig",
                {
                    "depths": [1, 1, 1, 1],
                    "hidden_sizes": [16, 32, 64, 128],
                    "embedding_size": 16,
                    "layer_type": "basic",
                    **stages,
                },
            ),
        ),
        "rt-detr-v2": (
            "RTDetrV2Config",
            "RTDetrV2ForObjectDetection",
            larger,
            {
                "encoder_in_channels": [32, 64, 128],
                "encoder_hidden_dim": 64,
                "d_model": 64,
                "decoder_layers": 2,
                "decoder_in_channels": [64, 64, 64],
                "num_queries": 20,
                "encoder_ffn_dim": 64,
                "decoder_ffn_dim": 64,
            },
            (
                "RTDetrResNetConfig",
                {
                    "depths": [1, 1, 1, 1],
                    "hidden_sizes": [16, 32, 64, 128],
                    "embedding_size": 16,
                    "layer_type": "basic",
                    **stages,
                },
            ),
        ),
        "d-fine": (
            "DFineConfig",
            "DFineForObjectDetection",
            larger,
            {
                "encoder_in_channels": [512, 1024, 2048],
                "encoder_hidden_dim": 64,
                "d_model": 64,
                "decoder_layers": 2,
                "decoder_in_channels": [64, 64, 64],
                "num_queries": 20,
                "encoder_ffn_dim": 64,
                "decoder_ffn_dim": 64,
            },
            ("HGNetV2Config", {**stages}),
        ),
        "upernet": (
            "UperNetConfig",
            "UperNetForSemanticSegmentation",
            larger,
            {"hidden_size": 32, "auxiliary_in_channels": 64, "pool_scales": [1, 2]},
            ("ResNetConfig", {**resnet, "out_features": ["stage1", "stage2", "stage3", "stage4"]}),
        ),
        "superpoint": (
            "SuperPointConfig",
            "SuperPointForKeypointDetection",
            {"pixel_values": torch.rand(1, 3, 64, 64)},
            {},
            None,
        ),
        "patchtst": (
            "PatchTSTConfig",
            "PatchTSTForPrediction",
            {"past_values": torch.randn(1, 32, 2)},
            {"num_input_channels": 2},
            None,
        ),
        "patchtsmixer": (
            "PatchTSMixerConfig",
            "PatchTSMixerForPrediction",
            {"past_values": torch.randn(1, 32, 2)},
            {"num_input_channels": 2, "norm_mlp": "BatchNorm"},
            None,
        ),
        "wav2vec2-conformer": (
            "Wav2Vec2ConformerConfig",
            "Wav2Vec2ConformerModel",
            {"input_values": torch.randn(1, 4000)},
            {
                "num_hidden_layers": 2,
                "hidden_size": 64,
                "num_attention_heads": 4,
                "intermediate_size": 64,
                "mask_time_prob": 0.0,
            },
            None,
        ),
        "speecht5": (
            "SpeechT5Config",
            "SpeechT5ForTextToSpeech",
            {
                "input_ids": torch.randint(3, 80, (1, 12)),
                "decoder_input_values": torch.randn(1, 8, 80),
                "speaker_embeddings": torch.randn(1, 512),
            },
            {"encoder_layers": 1, "decoder_layers": 1},
            None,
        ),
        "fastspeech2-conformer": (
            "FastSpeech2ConformerConfig",
            "FastSpeech2ConformerModel",
            {"input_ids": torch.randint(3, 70, (1, 12))},
            {"encoder_layers": 1, "decoder_layers": 1},
            None,
        ),
        "vitmatte": (
            "VitMatteConfig",
            "VitMatteForImageMatting",
            {"pixel_values": torch.randn(1, 4, 64, 64)},
            {"hidden_size": 32, "fusion_hidden_sizes": [64, 32, 16, 8], "convstream_hidden_sizes": [16, 24, 32]},
            (
                "VitDetConfig",
                {
                    "hidden_size": 32,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "num_channels": 4,
                    "image_size": 64,
                    "out_features": ["stage1"],
                },
            ),
        ),
        "efficient-loftr": (
            "EfficientLoFTRConfig",
            "EfficientLoFTRForKeypointMatching",
            {"pixel_values": torch.rand(1, 2, 3, 64, 64)},
            {},
            None,
        ),
        "groupvit": (
            "GroupViTConfig",
            "GroupViTModel",
            {"input_ids": torch.randint(1, 90, (1, 8)), "pixel_values": torch.randn(1, 3, 224, 224)},
            {},
            None,
        ),
    }
    return {name: lambda row=row: build(*row) for name, row in table.items()}


# -- medical images --------------------------------------------------------------------------------------------------


def _monai() -> dict[str, Build]:
    flat, deep = _image(1, 64, 64), _image(1, 32, 32, 32)
    plain = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3}
    units = {"channels": (8, 16, 32), "strides": (2, 2)}
    halves = {"channels": (8, 16), "strides": (2, 2), "norm": "batch"}
    table: dict[str, tuple[str, Inputs, dict[str, Any]]] = {
        "UNet": ("UNet", flat, {**plain, **units, "num_res_units": 2, "norm": "batch"}),
        "UNet-3d": ("UNet", deep, {**plain, **units, "spatial_dims": 3, "num_res_units": 2, "norm": "batch"}),
        "UNet-plain": ("UNet", flat, {**plain, **units, "norm": "batch"}),
        "BasicUNet": ("BasicUNet", flat, {**plain, "norm": "batch"}),
        "BasicUNetPlusPlus": ("BasicUNetPlusPlus", flat, {**plain, "norm": "batch"}),
        "SegResNet": ("SegResNet", flat, {**plain, "norm": "batch"}),
        "SegResNetDS": ("SegResNetDS", flat, {**plain, "norm": "batch"}),
        "DynUNet": (
            "DynUNet",
            flat,
            {
                **plain,
                "kernel_size": [3, 3, 3],
                "strides": [1, 2, 2],
                "upsample_kernel_size": [2, 2],
                "norm_name": "batch",
                "res_block": True,
            },
        ),
        "VNet": ("VNet", deep, {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}),
        "AttentionUnet": ("AttentionUnet", flat, {**plain, **units}),
        "UNETR": (
            "UNETR",
            flat,
            {
                **plain,
                "img_size": 64,
                "feature_size": 8,
                "hidden_size": 32,
                "mlp_dim": 32,
                "num_heads": 4,
                "norm_name": "batch",
            },
        ),
        "SwinUNETR": ("SwinUNETR", flat, {**plain, "feature_size": 12, "norm_name": "batch", "use_v2": True}),
        "FlexibleUNet": (
            "FlexibleUNet",
            _image(3, 64, 64),
            {"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0"},
        ),
        "HighResNet": ("HighResNet", flat, {**plain}),
        "AHNet": (
            "AHNet",
            _image(1, 128, 128),
            {"layers": (1, 1, 1, 1), "spatial_dims": 2, "in_channels": 1, "out_channels": 2, "psp_block_num": 2},
        ),
        "DenseNet121": ("DenseNet121", flat, {**plain}),
        "ResNet-A": (
            "ResNet",
            deep,
            {
                "block": "basic",
                "layers": [1, 1, 1, 1],
                "block_inplanes": [8, 16, 32, 64],
                "n_input_channels": 1,
                "shortcut_type": "A",
                "num_classes": 2,
            },
        ),
        "ResNet-B": (
            "ResNet",
            deep,
            {
                "block": "bottleneck",
                "layers": [1, 1, 1, 1],
                "block_inplanes": [8, 16, 32, 64],
                "n_input_channels": 1,
                "num_classes": 2,
            },
        ),
        "SEResNet50": ("SEResNet50", flat, {"spatial_dims": 2, "in_channels": 1, "num_classes": 2}),
        "EfficientNetBN": (
            "EfficientNetBN",
            flat,
            {"model_name": "efficientnet-b0", "spatial_dims": 2, "in_channels": 1, "pretrained": False},
        ),
        "AutoEncoder": ("AutoEncoder", flat, {**plain, **halves, "num_res_units": 1}),
        "VarAutoEncoder": (
            "VarAutoEncoder",
            flat,
            {"spatial_dims": 2, "in_shape": (1, 64, 64), "out_channels": 1, "latent_size": 4, **halves},
        ),
        "Classifier": ("Classifier", flat, {"in_shape": (1, 64, 64), "classes": 2, **units, "norm": "batch"}),
        "Regressor": ("Regressor", flat, {"in_shape": (1, 64, 64), "out_shape": (2,), **units, "norm": "batch"}),
        "HoVerNet": ("HoVerNet", _image(3, 256, 256), {"mode": "fast", "out_classes": 3}),
        "Quicknat": ("Quicknat", flat, {"num_classes": 3}),
        "VoxelMorph": (
            "VoxelMorphUNet",
            _image(2, 64, 64),
            {
                "spatial_dims": 2,
                "in_channels": 2,
                "unet_out_channels": 8,
                "channels": (8, 16),
                "final_conv_channels": (8,),
                "norm": "batch",
            },
        ),
        "LocalNet": (
            "LocalNet",
            flat,
            {"spatial_dims": 2, "in_channels": 1, "num_channel_initial": 8, "extract_levels": (0, 1)},
        ),
        "PatchDiscriminator": ("PatchDiscriminator", flat, {"spatial_dims": 2, "channels": 8, "in_channels": 1}),
    }

    def build(kind: str, inputs: Inputs, options: dict[str, Any]) -> tuple[nn.Module, Inputs]:
        return getattr(importlib.import_module("monai.networks.nets"), kind)(**options), inputs

    return {name: lambda row=row: build(*row) for name, row in table.items()}


# -- sound, EEG, graphs ----------------------------------------------------------------------------------------------


def _speechbrain() -> dict[str, Build]:
    frames = torch.randn(1, 60, 40)
    lobes = "speechbrain.lobes.models."
    table: dict[str, tuple[str, str, Inputs, dict[str, Any]]] = {
        "ECAPA-TDNN": (
            f"{lobes}ECAPA_TDNN",
            "ECAPA_TDNN",
            (frames,),
            {"input_size": 40, "channels": [64, 64, 64, 64, 96], "lin_neurons": 32},
        ),
        "Xvector": (
            f"{lobes}Xvector",
            "Xvector",
            (frames,),
            {"in_channels": 40, "tdnn_channels": [32, 32, 32, 32, 96], "lin_neurons": 32},
        ),
        "CRDNN": (
            f"{lobes}CRDNN",
            "CRDNN",
            (frames,),
            {
                "input_shape": [None, None, 40],
                "cnn_blocks": 1,
                "dnn_blocks": 1,
                "rnn_layers": 1,
                "rnn_neurons": 32,
                "dnn_neurons": 32,
            },
        ),
        "ResNet": (
            f"{lobes}ResNet",
            "ResNet",
            (frames,),
            {"input_size": 40, "channels": [8, 8, 16, 16], "block_sizes": [1, 1, 1, 1], "lin_neurons": 32},
        ),
        "Cnn14": (f"{lobes}Cnn14", "Cnn14", (torch.randn(1, 96, 64),), {"mel_bins": 64, "emb_dim": 64}),
        "ContextNet": (
            f"{lobes}ContextNet",
            "ContextNet",
            (frames,),
            {
                "input_shape": (1, 60, 40),
                "out_channels": 32,
                "conv_channels": [32],
                "strides": [1],
                "num_blocks": 1,
            },
        ),
        "LiGRU": ("speechbrain.nnet.RNN", "LiGRU", (frames,), {"hidden_size": 32, "input_shape": (1, 60, 40)}),
    }

    def build(module: str, kind: str, inputs: Inputs, options: dict[str, Any]) -> tuple[nn.Module, Inputs]:
        return getattr(importlib.import_module(module), kind)(**options), inputs

    return {name: lambda row=row: build(*row) for name, row in table.items()}


def _torchaudio() -> dict[str, Build]:
    def build(kind: str, inputs: Inputs, options: dict[str, Any]) -> tuple[nn.Module, Inputs]:
        return getattr(importlib.import_module("torchaudio.models"), kind)(**options), inputs

    lengths = torch.tensor([20])
    conformer = {"input_dim": 32, "num_heads": 4, "ffn_dim": 64, "num_layers": 2, "depthwise_conv_kernel_size": 7}
    wave = {"upsample_scales": [5, 5, 8], "n_classes": 16, "hop_length": 200, "n_rnn": 32, "n_fc": 32}
    return {
        "Conformer": lambda: build("Conformer", (torch.randn(1, 20, 32), lengths), conformer),
        "WaveRNN": lambda: build("WaveRNN", (torch.randn(1, 1, 1200), torch.randn(1, 1, 128, 10)), wave),
        "Tacotron2": lambda: build(
            "Tacotron2",
            (torch.randint(0, 100, (1, 12)), torch.tensor([12]), torch.randn(1, 80, 20), lengths),
            {"encoder_n_convolution": 2, "postnet_n_convolution": 3},
        ),
    }


def _braindecode() -> dict[str, Build]:
    names = (
        "ATCNet", "AttentionBaseNet", "BDTCN", "CTNet", "ContraWR", "DGCNN", "Deep4Net", "EEGConformer", "EEGITNet",
        "EEGInceptionERP", "EEGInceptionMI", "EEGNeX", "EEGNet", "EEGSimpleConv", "EEGSym", "EEGTCNet", "FBCNet",
        "FBLightConvNet", "FBMSNet", "HybridNet", "IFNet", "MSVTNet", "SCCNet", "SPARCNet", "SSTDPN", "SensingDynamics",
        "ShallowFBCSPNet", "SincShallowNet", "SleepStagerBlanco2020", "SleepStagerChambon2018", "TCFormer",
        "TIDNet", "TSception", "USleep", "AttnSleep", "DeepSleepNet", "MEDFormer", "BENDR",
    )  # fmt: skip
    sleep = {"USleep": (2, 3000), "AttnSleep": (1, 3000), "DeepSleepNet": (1, 3000), "SleepStagerBlanco2020": (2, 3000)}

    def build(name: str) -> tuple[nn.Module, Inputs]:
        channels, times = sleep.get(name, (22, 1000))
        rate = times / 30 if name in sleep else 250
        kind = getattr(importlib.import_module("braindecode.models"), name)
        return kind(n_chans=channels, n_outputs=4, n_times=times, sfreq=rate), _image(channels, times)

    return {name: lambda name=name: build(name) for name in names}


def _graphs() -> dict[str, Build]:
    edges = torch.tensor([[0, 1, 2, 3, 4, 1, 0, 5], [1, 2, 3, 4, 0, 3, 2, 1]])
    nodes = torch.randn(6, 8)
    shape = {"in_channels": 8, "hidden_channels": 32, "num_layers": 3, "out_channels": 4, "norm": "batch_norm"}

    def build(kind: str, options: dict[str, Any]) -> tuple[nn.Module, Inputs]:
        models = importlib.import_module("torch_geometric.nn.models")
        return getattr(models, kind)(**options), (nodes, edges)

    degrees = {"aggregators": ["mean", "max"], "scalers": ["identity"], "deg": torch.tensor([1, 2, 3])}
    table = {kind: (kind, shape) for kind in ("GCN", "GraphSAGE", "GIN", "GAT", "EdgeCNN")}
    table["PNA"] = "PNA", {**shape, **degrees}
    table["GIN-jk"] = "GIN", {**shape, "jk": "cat"}
    return {name: lambda row=row: build(*row) for name, row in table.items()}


_FAMILIES: dict[str, Callable[[], dict[str, Build]]] = {
    "ultralytics": _ultralytics,
    "smp": _smp,
    "transformers": _transformers,
    "monai": _monai,
    "pytorchcv": _pytorchcv,
    "open_clip": _open_clip,
    "speechbrain": _speechbrain,
    "braindecode": _braindecode,
    "pyg": _graphs,
    "torchaudio": _torchaudio,
}
