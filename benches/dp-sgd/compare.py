"""Has our bench and Opacus take turns. Usage: compare.py BENCH [--runs N] [--batch N] [NAME ...]; see README.md."""

import argparse
import json
import os
import statistics
import subprocess
import sys

# Name, steps in a run (enough that what a run costs before its first step does not hide them), and for both sides what the model is.
MODELS = {
    "mlp": {
        "steps": 100,
        "batch": 256,
        "ours": {
            "model": {"kind": "mlp", "hidden": [256], "activation": "relu"},
            "input": {"features": 784},
            "classes": 10,
        },
    },
    "cnn": {
        "steps": 20,
        "batch": 256,
        "ours": {
            "model": {
                "kind": "cnn",
                "activation": "tanh",
                "hidden": [32],
                "blocks": [
                    {"channels": 16, "kernel": 8, "stride": 2, "padding": 2, "pool": {"kernel": 2, "stride": 1}},
                    {"channels": 32, "kernel": 4, "stride": 2, "pool": {"kernel": 2, "stride": 1}},
                ],
            },
            "input": {"image": [1, 28, 28]},
            "classes": 10,
        },
    },
    "transformer": {
        "steps": 1,
        "batch": 256,
        "ours": {
            "model": {"kind": "transformer", "width": 256, "heads": 4, "layers": 4},
            "input": {"tokens": [64, 1000]},
            "classes": 10,
        },
    },
}


class Worker:
    """A process that takes steps on request."""

    def __init__(self, command):
        # What undertone-client starts its trainer with; both sides have it.
        memory = {"MALLOC_TRIM_THRESHOLD_": "67108864", "MALLOC_MMAP_THRESHOLD_": "33554432"}
        environment = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", **memory)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.says = self.process.stdout.readline().strip()

    def take(self, what, steps):
        """Processor time of a step in ms (without what a call costs before its first step), and peak memory in MiB."""
        first, _ = self.ask(what, 1)
        more, peak = self.ask(what, 1 + steps)
        return (more - first) / steps / 1e6, peak / 1024

    def ask(self, what, steps):
        self.process.stdin.write(f"{what} {steps}\n")
        self.process.stdin.flush()
        computed, _, peak = map(int, self.process.stdout.readline().split())
        return computed, peak

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def ours(bench, model, batch):
    return Worker([bench, json.dumps(dict(model["ours"], batch=batch))])


def theirs(name, batch, mode):
    here = os.path.dirname(os.path.abspath(__file__))
    return Worker([sys.executable, os.path.join(here, "opacus_step.py"), name, str(batch), mode])


def main():
    if sys.argv[1:] == ["--find"]:
        for line in sys.stdin:
            message = json.loads(line)
            if message.get("executable") and message["target"]["name"] == "dp_step":
                print(message["executable"])
        return
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("bench")
    args.add_argument("--runs", type=int, default=9)
    args.add_argument("--batch", type=int)
    args.add_argument("names", nargs="*", default=list(MODELS))
    args = args.parse_args()
    head = ["model", "batch", "plain", "private", "ratio", "exact", "torch", "opacus", "faster", "MiB", "opacus MiB"]
    print("".join(f"{word:>13}" for word in head))
    for name in args.names:
        model = MODELS[name]
        batch = args.batch or model["batch"]
        # A process for each way, so that the peak memory is that way's own.
        mode = "hooks" if name == "cnn" else "ghost"
        workers = {what: ours(args.bench, model, batch) for what in ("plain", "private", "exact")}
        if workers["plain"].says != "ready":
            print(f"{name:>13}: left out, this build says {workers['plain'].says}")
            continue
        workers["torch"] = theirs(name, batch, "plain")
        workers["opacus"] = theirs(name, batch, mode)
        seen = {what: [] for what in workers}
        for run in range(args.runs):
            for what, worker in workers.items():
                # The exact way takes long and is not what is compared.
                if what != "exact" or run < 3:
                    ask = what if what in ("plain", "private", "exact") else "step"
                    steps = model["steps"]
                    seen[what].append(worker.take(ask, steps))
        ms = {what: statistics.median(t for t, _ in runs) for what, runs in seen.items()}
        mib = {what: max(peak for _, peak in runs) for what, runs in seen.items()}
        for worker in workers.values():
            worker.end()
        row = [ms["plain"], ms["private"], ms["private"] / ms["plain"], ms["exact"], ms["torch"], ms["opacus"]]
        row += [ms["opacus"] / ms["private"], mib["private"], mib["opacus"]]
        print(f"{name:>13}{batch:>13}" + "".join(f"{value:>13.2f}" for value in row), flush=True)


if __name__ == "__main__":
    main()
