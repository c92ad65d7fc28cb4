"""A detector of ultralytics on a COCO data set: dense, and trained sparse, pruned and fine-tuned for as many epochs.

    pip install -e '.[integrations]'
    python scripts/bench_ultralytics.py --data FOLDER --out DIR

FOLDER holds annotations/{train,val,test}.json in COCO's format, and the images below it in folders of those names. The
dense network is trained for `--epochs`. The other one is trained sparse for `--sparse` of them, pruned to `--macs`, and
fine-tuned by ultralytics for the rest. Networks start from random weights. Ultralytics keeps the best epoch by mAP on
the validation images; mAP50 and mAP50-95 on the test images are printed, and written to DIR/result.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO

import bnprune
from bnprune.cli.render.tables import show_rows
from bnprune.integrations import ultralytics as pruning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", default="yolov8n.yaml")
    parser.add_argument("--imgsz", type=int, default=192)
    parser.add_argument("--epochs", type=int, default=80, help="of each of the two networks in all")
    parser.add_argument("--sparse", type=float, default=0.6, help="share of the epochs before the cut")
    parser.add_argument("--target", type=float, default=0.4, help="share of the channels to bring to zero")
    parser.add_argument("--macs", type=float, default=0.5, help="share of the MACs that is left")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = write_yolo_data(args.data, args.out / "data")
    settings = {
        "data": str(data), "imgsz": args.imgsz, "batch": 16, "workers": 0, "plots": False, "verbose": False,
        "project": str(args.out.resolve()), "exist_ok": True, "optimizer": "SGD", "lr0": 0.01, "seed": args.seed,
        "device": "cpu", "amp": False,
    }  # fmt: skip
    first = round(args.sparse * args.epochs)
    rows: dict[str, dict[str, Any]] = {}

    started = time.perf_counter()
    dense = YOLO(args.model)
    dense.train(epochs=args.epochs, name="dense", **settings)
    rows["dense"] = measured(args.out / "dense", settings, started)

    started = time.perf_counter()
    sparse = YOLO(args.model)
    callbacks = pruning.sparse_training(sparse, target=args.target)
    sparse.train(epochs=first, name="sparse", **settings)
    assert callbacks.penalty is not None
    print(callbacks.penalty.gammas())
    rows["sparse"] = measured(args.out / "sparse", settings, started)

    started = time.perf_counter()
    slim = pruning.prune(YOLO(weights(args.out / "sparse")), macs=args.macs, imgsz=args.imgsz,
                         calibrate=args.out / "data" / "images" / "train")  # fmt: skip
    report = slim.pruning.report
    slim.save(args.out / "pruned.pt")
    rows["pruned"] = measured(args.out / "pruned.pt", settings, started)
    slim.train(epochs=args.epochs - first, name="fine-tuned", **settings)
    rows["fine-tuned"] = measured(args.out / "fine-tuned", settings, started)

    result = {
        "rows": rows, "macs": report.macs_after / report.macs_before, "ratio": report.ratio_realised,
        "error": report.max_relative_error, "epochs": args.epochs, "sparse": first, "seed": args.seed,
        "model": args.model, "imgsz": args.imgsz, "gammas": str(callbacks.penalty.gammas()),
        "versions": {"torch": torch.__version__, "bnprune": bnprune.__version__},
    }  # fmt: skip
    (args.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    columns = ["network", "test mAP50", "mAP50-95", "parameters", "seconds"]
    show_rows(columns, [
        (name, f"{row['map50']:.1%}", f"{row['map']:.1%}", f"{row['parameters']:,}", f"{row['seconds']:.0f}")
        for name, row in rows.items()
    ])  # fmt: skip
    print(f"MACs left: {result['macs']:.1%}; error of the proof: {report.max_relative_error:.1e}")


def weights(run: Path) -> Path:
    return run if run.suffix else run / "weights" / "best.pt"


def measured(run: Path, settings: dict[str, Any], started: float) -> dict[str, Any]:
    """Return the figures of a network on the test images."""
    seconds = time.perf_counter() - started
    yolo = YOLO(weights(run))
    parameters = sum(parameter.numel() for parameter in yolo.model.parameters())
    kept = {key: settings[key] for key in ("data", "imgsz", "batch", "workers", "plots", "verbose", "device")}
    box = yolo.val(split="test", project=settings["project"], name="test", exist_ok=True, **kept).box
    return {"map50": float(box.map50), "map": float(box.map), "parameters": parameters, "seconds": seconds}


def write_yolo_data(source: Path, target: Path) -> Path:
    """Write a COCO data set in the format of YOLO, and return the path of data.yaml."""
    names: dict[int, str] = {}
    for part in ("train", "val", "test"):
        coco = json.loads((source / "annotations" / f"{part}.json").read_text())
        names = {category["id"]: category["name"] for category in coco["categories"]}
        place = {identifier: index for index, identifier in enumerate(sorted(names))}
        lines: dict[int, list[str]] = {image["id"]: [] for image in coco["images"]}
        sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
        for entry in coco["annotations"]:
            (left, top, width, height), (w, h) = entry["bbox"], sizes[entry["image_id"]]
            box = (left + width / 2) / w, (top + height / 2) / h, width / w, height / h
            lines[entry["image_id"]].append(
                f"{place[entry['category_id']]} " + " ".join(f"{min(max(value, 0), 1):.6f}" for value in box)
            )
        for kind in ("images", "labels"):
            (target / kind / part).mkdir(parents=True, exist_ok=True)
        for image in coco["images"]:
            shutil.copy(source / part / image["file_name"], target / "images" / part)
            path = target / "labels" / part / Path(image["file_name"]).with_suffix(".txt").name
            path.write_text("".join(f"{line}\n" for line in lines[image["id"]]))
    listed = "\n".join(f"  {index}: {names[identifier]}" for index, identifier in enumerate(sorted(names)))
    folders = "train: images/train\nval: images/val\ntest: images/test"
    (target / "data.yaml").write_text(f"path: {target.resolve()}\n{folders}\nnames:\n{listed}\n")
    return target / "data.yaml"


if __name__ == "__main__":
    main()
