"""Recipes of ``paddle_projects.py``: tiny data, tiny configurations and the commands to run.

A recipe is a list of commands (a script of the project and its arguments). The configurations are
those of the projects, with small pictures, few steps and no pretrained weights.
"""

import json
import re
from pathlib import Path

import yaml

WORDS = ["quantize", "scale", "step", "paddle"]
# Sizes in the configurations of PaddleDetection, made small.
DET_SIZES = [
    (r"target_size: \[\d+(, \d+){2,}\]", "target_size: [192, 224]"),
    (r"target_size: \[\d+, \d+\]", "target_size: [192, 192]"),
    (r"&eval_(height|width) \d+", r"&eval_\1 192"),
    (r"image_shape: \[3, \d+, \d+\]", "image_shape: [3, 192, 192]"),
]


def write_data(root):
    """Write pictures and labels in the formats of all projects below ``root``."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    root = Path(root)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True, exist_ok=True)
    lines = {key: [] for key in ("cls", "seg", "det", "rec", "angle")}
    coco = {"images": [], "annotations": [], "categories": [
        {"id": number + 1, "name": f"c{number}", "keypoints": [str(n) for n in range(17)],
         "skeleton": []} for number in range(80)]}
    for number in range(4):
        name = f"images/{number}.jpg"
        image = cv2.resize(rng.integers(0, 255, [8, 8, 3], dtype=np.uint8), (96, 96))
        box = (8 + number, 10, 40 + number, 60)
        cv2.rectangle(image, box[:2], box[2:], (255, 255, 255), -1)
        word = WORDS[number]
        cv2.putText(image, word, (10, 40), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1)
        cv2.imwrite(str(root / name), image)
        mask = np.zeros([96, 96], np.uint8)
        cv2.rectangle(mask, box[:2], box[2:], 1, -1)
        cv2.imwrite(str(root / f"masks/{number}.png"), mask)
        strip = cv2.resize(rng.integers(128, 255, [4, 16, 3], dtype=np.uint8), (160, 48))
        cv2.putText(strip, word, (8, 32), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 0, 0), 2)
        cv2.imwrite(str(root / f"images/word{number}.jpg"), strip)
        x0, y0, x1, y1 = box
        lines["cls"].append(f"{name} {number % 2}")
        lines["seg"].append(f"{name} masks/{number}.png")
        lines["det"].append(f"{name}\t" + json.dumps([{"transcription": word, "points": [
            [x0, y0], [x1, y0], [x1, y1], [x0, y1]]}]))
        lines["rec"].append(f"images/word{number}.jpg\t{word}")
        lines["angle"].append(f"images/word{number}.jpg\t{'0' if number % 2 else '180'}")
        coco["images"].append({"id": number, "file_name": Path(name).name, "width": 96,
                               "height": 96})
        coco["annotations"].append({
            "id": number + 1, "image_id": number, "category_id": 1, "iscrowd": 0,
            "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0),
            "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]], "num_keypoints": 17,
            "keypoints": [value for n in range(17) for value in (x0 + n, y0 + 2 * n, 2)]})
    for key, rows in lines.items():
        (root / f"{key}.txt").write_text("\n".join(rows) + "\n")
    (root / "coco.json").write_text(json.dumps(coco))


def _yaml(folder, name, config):
    path = Path(folder) / "tiny" / f"{name}.yml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return f"tiny/{path.name}"


def _load(folder, path):
    return yaml.safe_load((Path(folder) / path).read_text(encoding="utf-8"))


# PaddleClas ---------------------------------------------------------------------------------------

def _clas_config(folder, name, config, slim=True, size=64):
    config = _load(folder, f"ppcls/configs/{config}")
    overall = config["Global"]
    overall.update(device="cpu", epochs=12, image_shape=[3, size, size], pretrained_model=None,
                   output_dir=f"tiny/{name}-train", save_interval=12, eval_during_train=False,
                   print_batch_step=1,
                   save_inference_dir=f"tiny/{name}")
    overall.pop("eval_mode", None)
    if slim:
        config["Slim"] = {"quant": {"name": "pact"}}
    else:
        config.pop("Slim", None)
    config["Optimizer"]["lr"]["learning_rate"] = 0.003
    arch = config["Arch"]
    for part in (arch, arch.get("Backbone", {}), *(
            next(iter(each.values())) for each in arch.get("models", []))):
        if "pretrained" in part:
            part["pretrained"] = False
    dataset = {"name": "ImageNetDataset", "image_root": "tiny/data",
               "cls_label_path": "tiny/data/cls.txt", "transform_ops": [
                   {"DecodeImage": {"to_rgb": True, "channel_first": False}},
                   {"ResizeImage": {"size": size}},
                   {"NormalizeImage": {"scale": "1.0/255.0", "mean": [0.5] * 3, "std": [0.5] * 3,
                                       "order": ""}}]}
    loader = {"dataset": dataset, "loader": {"num_workers": 0, "use_shared_memory": False},
              "sampler": {"name": "DistributedBatchSampler", "batch_size": 2, "drop_last": False,
                          "shuffle": False}}
    config["DataLoader"] = {"Train": loader, "Eval": loader}
    config["Metric"] = {"Train": None, "Eval": [{"TopkAcc": {"topk": [1]}}]}
    return _yaml(folder, name, config)


def clas(config):
    """QAT with PACT: train and export."""
    def commands(folder, name):
        path = _clas_config(folder, name, config)
        return [["tools/train.py", "-c", path],
                ["tools/export_model.py", "-c", path, "-o",
                 f"Global.pretrained_model=tiny/{name}-train/latest"]]
    return commands


def clas_post(config):
    """Train and export the float model, and quantize the file."""
    def commands(folder, name):
        path = _clas_config(folder, name, config, slim=False)
        return [["tools/train.py", "-c", path],
                ["tools/export_model.py", "-c", path, "-o",
                 f"Global.pretrained_model=tiny/{name}-train/latest"],
                ["deploy/slim/quant_post_static.py", "-c", path]]
    return commands


# PaddleSeg ----------------------------------------------------------------------------------------

def _seg_config(folder, name, config, model=None):
    dataset = {"type": "Dataset", "dataset_root": "tiny/data", "num_classes": 2, "transforms": [
        {"type": "Resize", "target_size": [64, 64]}, {"type": "Normalize"}]}
    return _yaml(folder, name, {
        "_base_": f"../configs/{config}", "batch_size": 2, "iters": 20,
        "train_dataset": {**dataset, "train_path": "tiny/data/seg.txt", "mode": "train"},
        "val_dataset": {**dataset, "val_path": "tiny/data/seg.txt", "mode": "val"},
        "model": model or {"backbone": {"pretrained": None}}})


def seg(config, model=None):
    """QAT of the backbone, or of all where a model has none: train and export."""
    def commands(folder, name):
        path = _seg_config(folder, name, config, model)
        return [["deploy/slim/quant/qat_train.py", "--config", path, "--device", "cpu",
                 "--save_interval", "20", "--save_dir", f"tiny/{name}-train"],
                ["deploy/slim/quant/qat_export.py", "--config", path, "--save_dir", f"tiny/{name}",
                 "--model_path", f"tiny/{name}-train/iter_20/model.pdparams",
                 "--output_op", "none"]]
    return commands


def seg_post(config, model=None):
    """Train and export the float model, and quantize the file."""
    def commands(folder, name):
        path = _seg_config(folder, name, config, model)
        return [["tools/train.py", "--config", path, "--device", "cpu", "--save_interval", "20",
                 "--save_dir", f"tiny/{name}-train"],
                ["tools/export.py", "--config", path, "--output_op", "none", "--save_dir",
                 f"tiny/{name}-float", "--model_path",
                 f"tiny/{name}-train/iter_20/model.pdparams"],
                ["deploy/slim/quant/ptq.py", "--config", path, "--model_dir",
                 f"tiny/{name}-float"]]
    return commands


# PaddleDetection ----------------------------------------------------------------------------------

def shrink_detection(folder):
    """Make the pictures small in all configurations of a copy of PaddleDetection."""
    for path in (Path(folder) / "configs").rglob("*.yml"):
        text = path.read_text(encoding="utf-8")
        for pattern, replacement in DET_SIZES:
            text = re.sub(pattern, replacement, text)
        path.write_text(text, encoding="utf-8")


def _det_config(folder, name, config, slim, more):
    dataset = {"image_dir": "images", "anno_path": "coco.json", "dataset_dir": "tiny/data"}
    base = {"_BASE_": [f"../configs/{config}"], "use_gpu": False, "worker_num": 0, "epoch": 1,
            "pretrain_weights": None, "log_iter": 1, "save_dir": f"tiny/{name}-float",
            "metric": "COCO", **more}
    text = yaml.safe_dump(base)
    for part in ("TrainDataset", "EvalDataset", "TestDataset"):
        if "keypoint" in config:
            kind = "!ImageFolder" if part == "TestDataset" else "!KeypointTopDownCocoDataset"
        else:
            kind = "!ImageFolder" if part == "TestDataset" else "!COCODataSet"
        fields = {"anno_path": "tiny/data/coco.json"} if part == "TestDataset" else dict(dataset)
        if part != "TestDataset" and "keypoint" in config:
            fields.update(num_joints=17, trainsize=[96, 128], pixel_std=200, use_gt_bbox=True)
        elif part != "TestDataset":
            fields["data_fields"] = ["image", "gt_bbox", "gt_class", "is_crowd"] + (
                ["gt_poly"] if "mask" in config else [])
        text += f"{part}:\n  {kind}\n" + "".join(
            f"    {key}: {json.dumps(value)}\n" for key, value in fields.items())
    path = Path(folder) / "tiny" / f"{name}.yml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    slim_path = None
    if slim:  # its weights are URLs
        lines = (Path(folder) / "configs/slim" / slim).read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if not line.startswith(("weights:", "pretrain_weights:"))]
        slim_path = Path(folder) / "tiny" / f"{name}-slim.yml"
        slim_path.write_text("\n".join(kept) + "\n")
        slim_path = f"tiny/{slim_path.name}"
    return f"tiny/{path.name}", slim_path


def _det_options(options):
    return ["-o", "use_gpu=False", "epoch=2", "snapshot_epoch=2", "TrainReader.batch_size=2",
            "EvalReader.batch_size=2", "LearningRate.base_lr=0.0001", *options]


def det(config, slim, options=(), **more):
    """Train in float, QAT from these weights, and export."""
    def commands(folder, name):
        path, slim_path = _det_config(folder, name, config, slim, more)
        given = _det_options(options)
        return [["tools/train.py", "-c", path, *given],
                ["tools/train.py", "-c", path, "--slim_config", slim_path, *given,
                 f"save_dir=tiny/{name}-qat",
                 f"pretrain_weights=tiny/{name}-float/model_final.pdparams"],
                ["tools/export_model.py", "-c", path, "--slim_config", slim_path, "--output_dir",
                 "tiny/int8", *given, f"weights=tiny/{name}-qat/model_final.pdparams"]]
    return commands


def det_post(config, slim, options=(), **more):
    """Train in float, and PTQ of these weights."""
    def commands(folder, name):
        weights = f"tiny/{name}-float/model_final.pdparams"
        path, slim_path = _det_config(folder, name, config, slim, {**more, "weights": weights})
        given = _det_options(options)
        return [["tools/train.py", "-c", path, *given],
                ["tools/post_quant.py", "-c", path, "--slim_config", slim_path, "--output_dir",
                 "tiny/int8", *given, f"weights={weights}"]]
    return commands


# PaddleOCR ----------------------------------------------------------------------------------------

def _ocr_config(folder, name, config):
    config = _load(folder, f"configs/{config}")
    config["Global"].update(
        use_gpu=False, epoch_num=6, distributed=False, pretrained_model=None, print_batch_step=1,
        save_model_dir=f"tiny/{name}-train", save_inference_dir=f"tiny/{name}",
        eval_batch_step=[0, 1000], save_epoch_step=6, cal_metric_during_train=False)
    kind = config["Architecture"]["model_type"]
    labels = {"det": "det.txt", "rec": "rec.txt", "cls": "angle.txt"}[kind]
    for part in (config["Architecture"], *config["Architecture"].get("Models", {}).values()):
        if "pretrained" in part:
            part["pretrained"] = None
    for side in ("Train", "Eval"):
        dataset = config[side]["dataset"]
        dataset.update(data_dir="tiny/data", label_file_list=[f"tiny/data/{labels}"])
        dataset.pop("ratio_list", None)
        dataset["transforms"] = [each for each in (
            _small(dict(entry)) for entry in dataset["transforms"]) if each]
        config[side]["loader"].update(batch_size_per_card=2, num_workers=0, drop_last=False)
        if "sampler" in config[side]:
            config[side]["sampler"].update(first_bs=2, scales=[[160, 48]])
    return _yaml(folder, name, config)


MERGE = """\
    for layer in model.sublayers():
        if hasattr(layer, "rep") and not layer.is_repped:
            layer.rep()
"""


def _small(transform):
    """Return a transform with small pictures; None for those that need the internet or time."""
    name, options = next(iter(transform.items()))
    if name in ("CopyPaste", "RecConAug"):
        return None
    if name == "EastRandomCropData":
        options.update(size=[64, 64])
    if name == "DetResizeForTest":
        return {name: {"image_shape": [64, 64]}}
    return transform


def ocr(config, merge_first=False):
    """QAT: train and export; with ``merge_first`` branches are merged before ``quantize``."""
    def commands(folder, name):
        path, end = _ocr_config(folder, name, config), "_merged" if merge_first else ""
        scripts = Path(folder) / "deploy/slim/quantization"
        for script in ("quant", "export_model") if merge_first else ():
            text = (scripts / f"{script}.py").read_text(encoding="utf-8")
            (scripts / f"{script}{end}.py").write_text(text.replace(
                "    quanter.quantize(model)\n", MERGE + "    quanter.quantize(model)\n"))
        return [[f"deploy/slim/quantization/quant{end}.py", "-c", path],
                [f"deploy/slim/quantization/export_model{end}.py", "-c", path, "-o",
                 f"Global.checkpoints=tiny/{name}-train/latest"]]
    return commands


def ocr_post(config):
    """Train and export the float model, and quantize the file."""
    def commands(folder, name):
        path = _ocr_config(folder, name, config)
        return [["tools/train.py", "-c", path],
                ["tools/export_model.py", "-c", path, "-o",
                 f"Global.checkpoints=tiny/{name}-train/latest",
                 f"Global.save_inference_dir=tiny/{name}-float"],
                ["deploy/slim/quantization/quant_kl.py", "-c", path, "-o",
                 f"Global.inference_model=tiny/{name}-float"]]
    return commands


RECIPES = {
    "PaddleClas": {
        "PPLCNet_x1_0 PACT": clas("slim/PPLCNet_x1_0_quantization.yaml"),
        "MobileNetV3_large PACT": clas("slim/MobileNetV3_large_x1_0_quantization.yaml"),
        "PPLCNetV2_small PACT": clas("ImageNet/PPLCNetV2/PPLCNetV2_small.yaml"),
        "ResNet50_vd PACT": clas("slim/ResNet50_vd_quantization.yaml"),
        "PPLCNet_x1_0 post": clas_post("slim/PPLCNet_x1_0_quantization.yaml"),
    },
    "PaddleSeg": {
        "PP-LiteSeg QAT": seg("quick_start/pp_liteseg_optic_disc_512x512_1k.yml"),
        "MobileSeg QAT": seg("mobileseg/mobileseg_mobilenetv2_cityscapes_1024x512_80k.yml"),
        "PP-HumanSeg-Lite QAT": seg("pp_humanseg_lite/pp_humanseg_lite_mini_supervisely.yml",
                                    {"align_corners": False}),
        "PP-LiteSeg post": seg_post("quick_start/pp_liteseg_optic_disc_512x512_1k.yml"),
    },
    "PaddleDetection": {
        "PicoDet-S QAT": det("picodet/picodet_s_320_coco_lcnet.yml",
                             "quant/picodet_s_416_lcnet_quant.yml"),
        "PP-YOLOE-s QAT": det("ppyoloe/ppyoloe_crn_s_300e_coco.yml", "quant/ppyoloe_l_qat.yml"),
        "YOLOv3-MobileNetV1 QAT": det("yolov3/yolov3_mobilenet_v1_270e_coco.yml",
                                      "quant/yolov3_mobilenet_v1_qat.yml"),
        "PicoDet-S PTQ": det_post("picodet/picodet_s_320_coco_lcnet.yml",
                                  "post_quant/picodet_s_ptq.yml"),
        "PP-YOLOE-s PTQ": det_post("ppyoloe/ppyoloe_crn_s_300e_coco.yml",
                                   "post_quant/ppyoloe_crn_s_300e_coco_ptq.yml"),
        "TinyPose QAT": det("keypoint/tiny_pose/tinypose_128x96.yml", "quant/tinypose_qat.yml",
                            metric="KeyPointTopDownCOCOEval"),
    },
    "PaddleOCR": {
        "PP-OCRv4 det QAT": ocr("det/ch_PP-OCRv4/ch_PP-OCRv4_det_student.yml"),
        "PP-OCRv4 det QAT, merged first": ocr(
            "det/ch_PP-OCRv4/ch_PP-OCRv4_det_student.yml", merge_first=True),
        "PP-OCRv3 det CML QAT": ocr("det/ch_PP-OCRv3/ch_PP-OCRv3_det_cml.yml"),
        "PP-OCRv3 rec QAT": ocr("rec/PP-OCRv3/ch_PP-OCRv3_rec.yml"),
        "CRNN QAT": ocr("rec/ch_ppocr_v2.0/rec_chinese_lite_train_v2.0.yml"),
        "PP-OCRv3 rec distillation QAT": ocr("rec/PP-OCRv3/ch_PP-OCRv3_rec_distillation.yml"),
        "cls QAT": ocr("cls/cls_mv3.yml"),
        "PP-OCRv4 det post": ocr_post("det/ch_PP-OCRv4/ch_PP-OCRv4_det_student.yml"),
    },
}
