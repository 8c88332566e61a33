"""Write generalized_jsd.json with TRL's own loss; run where TRL 1.16 is installed, which is no dependency.

python tests/golden/make_generalized_jsd.py
"""

import json
from pathlib import Path

import torch
from trl.experimental.gkd import GKDTrainer

CASES = [(0.0, 1.0), (0.1, 1.0), (0.5, 1.0), (0.9, 1.0), (1.0, 1.0), (0.5, 2.0), (0.3, 0.5), (0.0, 3.0)]


def main() -> None:
    draw, cases = torch.Generator().manual_seed(0), []
    for beta, temperature in CASES:
        student, teacher = (torch.randn(4, 6, generator=draw) * 3 for _ in range(2))
        loss = GKDTrainer.generalized_jsd_loss(
            student[None], teacher[None], beta=beta, temperature=temperature, reduction="sum"
        )
        case = {"beta": beta, "temperature": temperature, "sum": loss.item()}
        cases.append(case | {"student": student.tolist(), "teacher": teacher.tolist()})
    Path(__file__).with_name("generalized_jsd.json").write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main()
