"""One run of TRL's GRPOTrainer; run by TRL's own Python with the task as JSON. Writes a line per step."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def main(asked: dict[str, Any]) -> None:
    """Train, and tell when each step ended."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(asked["threads"])

    def tell(line: dict[str, float]) -> None:
        with Path(asked["out"]).open("a") as told:
            told.write(json.dumps(line) + "\n")

    class Tell(TrainerCallback):  # type: ignore[misc]
        """Writes down the beginning and what each step logs."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            tell({"at": time.time()})

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "reward" in logs:
                tell({"at": time.time(), "reward": logs["reward"], "length": logs["completions/mean_length"]})

    def right(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        if asked["rule"] == "exact":
            return [float(text.strip() == wanted) for text, wanted in zip(completions, answer, strict=True)]
        return [float(wanted in text) for text, wanted in zip(completions, answer, strict=True)]

    answers = asked["groups"] * asked["group_size"]
    at_once = 64
    """Answers that go through the model together; the gradients of several add up to a step."""
    config = GRPOConfig(
        output_dir=str(Path(asked["out"]).parent / "trainer"),
        seed=asked["seed"],
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=answers // at_once,
        num_generations=asked["group_size"],
        max_completion_length=asked["max_tokens"],
        max_steps=asked["steps"],
        learning_rate=asked["learning_rate"],
        lr_scheduler_type="constant_with_warmup" if asked["warmup"] else "constant",
        warmup_steps=asked["warmup"],
        temperature=1.0,
        beta=0.0,
        loss_type="grpo",
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=asked["model"],
        reward_funcs=right,
        args=config,
        train_dataset=Dataset.from_json(asked["prompts"]),
        processing_class=AutoTokenizer.from_pretrained(asked["model"], padding_side="left"),
        callbacks=[Tell()],
    )
    trainer.train()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
