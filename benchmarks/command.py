"""Wall-clock time of the whole command `mast3r-sfm reconstruct`, start of Python included.

    python benchmarks/command.py --views 7

Writes random weights of the published sizes and rendered photos to a temporary folder and runs the command several
times; the first run finds the weights in the page cache already, because they were just written. Random weights
predict nothing that connects, so matches are not verified and every pixel goes into the scene: more work than usual.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from mast3r_sfm.config import DEFAULT_MODEL, PRESETS
from mast3r_sfm.synthetic import render_orbit
from pipeline import random_model


def published_config() -> dict[str, Any]:
    """`config.json` of the published model."""
    config = asdict(PRESETS[DEFAULT_MODEL])
    modes = {name: list(config[name].values()) for name in ("depth_mode", "conf_mode", "desc_conf_mode")}
    kept = {name: value for name, value in config.items() if name.startswith(("enc_", "dec_"))}
    kept |= {"head_type": config["head_type"], "img_size": list(config["img_size"]), "two_confs": True}
    return kept | modes | {"output_mode": f"pts3d+desc{config['desc_dim']}", "pos_embed": "RoPE100"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=7)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "model").mkdir()
        (folder / "photos").mkdir()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = random_model(PRESETS[DEFAULT_MODEL], device, "fp32").network
        save_file({k: v.detach().contiguous().cpu() for k, v in network.named_parameters()},
                  folder / "model" / "model.safetensors")  # fmt: skip
        (folder / "model" / "config.json").write_text(json.dumps(published_config()))
        del network
        scene = render_orbit(900_001, arguments.views, (512, 384), 100, device)
        for k, image in enumerate(scene.rgb.cpu().numpy()):
            Image.fromarray(image).save(folder / "photos" / f"{k:03d}.jpg", quality=95)
        torch.cuda.empty_cache()
        command = [sys.executable, "-m", "mast3r_sfm", "reconstruct", "--input", folder / "photos", "--model-name",
                   folder / "model", "--no-verify-matches", "--min-conf-thr", "0", "--quiet"]  # fmt: skip
        for run in range(arguments.runs):
            start = time.perf_counter()
            done = subprocess.run([*map(str, command), "--output", str(folder / f"out{run}")], check=False)
            seconds = time.perf_counter() - start
            stages = json.loads((folder / f"out{run}" / "run.json").read_text())["seconds"]
            print(f"run {run}: exit code {done.returncode}, {seconds:.2f} s; "
                  + ", ".join(f"{name} {value:.2f}" for name, value in stages.items()), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
