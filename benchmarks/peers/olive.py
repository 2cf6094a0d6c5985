"""Olive."""

import json
import subprocess
import sys
from pathlib import Path

task, model, data, output = sys.argv[1:]
SCRIPT = """
import numpy as np
import torch
from olive.data.registry import Registry


class Samples(torch.utils.data.Dataset):
    def __init__(self, path):
        self.arrays = np.load(path)
        self.name = self.arrays.files[0]
        self.rows = self.arrays[self.name]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {self.name: self.rows[index]}, 0


@Registry.register_dataset()
def samples(path, **options):
    return Samples(path)
"""
folder = Path(output).parent / "olive"
if task == "language":
    line = ["olive", "quantize", "-m", model, "--algorithm", "rtn", "--precision", "int4"]
    line += ["--implementation", "matmul4", "-o", str(folder), "--disable_telemetry"]
else:
    (Path(output).parent / "olive_samples.py").write_text(SCRIPT)
    configuration = {
        "input_model": {"type": "ONNXModel", "model_path": model},
        "data_configs": [
            {
                "name": "photos",
                "user_script": str(Path(output).parent / "olive_samples.py"),
                "load_dataset_config": {"type": "samples", "params": {"path": data}},
                "dataloader_config": {"batch_size": 1},
            }
        ],
        "passes": {
            "q": {
                "type": "OnnxStaticQuantization",
                "data_config": "photos",
                "quant_format": "QDQ",
                "per_channel": True,
            }
        },
        "output_dir": str(folder),
    }
    (Path(output).parent / "olive.json").write_text(json.dumps(configuration))
    line = ["olive", "run", "--config", str(Path(output).parent / "olive.json")]
subprocess.run([str(Path(sys.executable).parent / line[0]), *line[1:]], check=True)
made = max(folder.rglob("*.onnx"), key=lambda path: path.stat().st_mtime)
Path(output).write_bytes(made.read_bytes())
