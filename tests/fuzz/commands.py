"""The command lines that a mutant is given to; {m} is its file, {o} the output."""

from __future__ import annotations

from collections.abc import Mapping

WRITE = "-o {o}"
COMMANDS: Mapping[str, str] = {
    "inspect": "inspect {m} --json",
    "inspect-all": "inspect {m} --sites --cost --groups --branches",
    "inspect-data": "inspect {m} --branches --data random:2",
    "verify": "verify {m} {m}",
    "verify-top1": "verify {m} {m} --metric top1 --data random:2",
    "verify-detections": "verify {m} {m} --metric detection-agreement --data random:2",
    "verify-characters": "verify {m} {m} --metric character-error --data random:2",
    "verify-recall": "verify {m} {m} --metric embedding-recall,k=1 --data random:2",
    "verify-perplexity": "verify {m} {m} --metric perplexity --data random:2",
    "verify-blame": "verify {m} {m} --blame",
    "compare": "compare {m} {m} --seconds 0.01 --report {o}.html",
    "bench": "bench {m} --seconds 0.01",
    "compress": f"compress {{m}} {WRITE}",
    "compress-clean": f"compress {{m}} {WRITE} --no-quantize",
    "compress-size": f"compress {{m}} {WRITE} --max-size 0.5 --effort low --time-limit 2",
    "compress-activations": f"compress {{m}} {WRITE} --max-activations 0.8 --effort low "
    "--time-limit 2",
    "compress-constant": f"compress {{m}} {WRITE} --constant-inputs --plan-out {{o}}.json",
    "quantize-8": f"quantize {{m}} {WRITE} --bits 8",
    "quantize-unverified": f"quantize {{m}} {WRITE} --bits 4 --no-verify",
    "quantize-report": f"quantize {{m}} {WRITE} --bits 4 --report {{o}}.html",
    "quantize-static": f"quantize {{m}} {WRITE} --activations static --data random:2",
    "quantize-gptq": f"quantize {{m}} {WRITE} --bits 4 --method gptq --data random:2",
    "quantize-mixed": f"quantize {{m}} {WRITE} --bits mixed --avg-bits 5",
    "prune": f"prune {{m}} {WRITE} --ratio 0.3",
    "prune-data": f"prune {{m}} {WRITE} --score wanda --compensate refit --data random:2",
    "prune-stream": f"prune {{m}} {WRITE} --recipe slicegpt --data random:2",
    "drop": f"drop {{m}} {WRITE} --branches 1",
    "drop-trials": f"drop {{m}} {WRITE} --branches 1 --score ablation --data random:2",
    "plan": "plan {m} -o {o}.json",
    "lower-cpu": f"lower {{m}} {WRITE}",
    "lower-cuda": f"lower {{m}} {WRITE} --target cuda --allow-fallback",
    "lower-tensorrt": f"lower {{m}} {WRITE} --target tensorrt --allow-fallback --no-verify",
    "lower-half": f"lower {{m}} {WRITE} --target cuda --floats float16 --half-boundary",
    "recover": f"recover {{m}} {WRITE} --teacher {{m}} --data random:20 --steps 4 --parts blocks",
    "apply": f"apply {{m}} {{p}} {WRITE}",
}
